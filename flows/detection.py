"""detection-train: a detector's recipe to a tested, registered model version, with pictures of what it finds."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run

from flows.artifacts import even, key_of, table
from flows.evaluate import SECONDS_TO_REGISTER
from flows.parameters import (
    DatasetName,
    Deepen,
    InitialReference,
    Launcher,
    MaxFailures,
    Mirror,
    Overrides,
    Parameter,
    Price,
    Profile,
    Registered,
    RegisteredAs,
    Seed,
    Steps,
    ValidateAside,
    Workers,
)
from flows.shell import form, logged, outcome, phase
from flows.train import show_places, trained_and_tested
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.data.image_files import open_image
from resnet_pipeline.detection.metrics import CocoMetrics
from resnet_pipeline.jobs.detect import DetectionTest, DetectorEvaluation, evaluate_detectors
from resnet_pipeline.jobs.initial_weights import InitialWeights
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.pictures import pictures_of
from resnet_pipeline.jobs.register import check_network_name
from resnet_pipeline.jobs.register_detector import register_detector
from resnet_pipeline.jobs.train import TrainedRun, run_config
from resnet_pipeline.records import JsonObject, plain
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_WIDEST = 900  # pixels of the pictures on Prefect's page, which keeps them as text

DetectionFamily = Annotated[
    Literal["voc", "coco", "scenes"],
    Parameter(help="Whose settings: Pascal VOC's, COCO's, or those of the built-in digits on backgrounds."),
]
DetectionNetwork = Annotated[
    Literal[
        "fasterrcnn-resnet50-c4", "fasterrcnn-resnet101-c4", "fasterrcnn-resnet50-fpn", "maskrcnn-resnet50-fpn",
        "fasterrcnn-resnet8-c4", "maskrcnn-resnet8-c4",
    ],
    Parameter(help="A detector of the family: -c4 as the paper (appendix A), -fpn as today; maskrcnn with masks."),
]  # fmt: skip


def _named() -> str:
    given = flow_run.parameters
    return f"{given['family']}/{given['network']} · {given['dataset']} · seed {given.get('seed') or 0}"


@phase("evaluate", "evaluate · {dataset} · objects")
def find(models: list[str], dataset: str) -> list[DetectorEvaluation]:
    """Test detectors; kept result files are reused."""
    return evaluate_detectors(Workspace.of(), models, DetectionTest(dataset=dataset))


@phase("register", "register · {trained.run.name}", timeout=SECONDS_TO_REGISTER)
def register(trained: TrainedRun, evaluation: DetectorEvaluation, name: str | None) -> str:
    """Register the detector with its precision."""
    version = register_detector(Workspace.of(), trained, evaluation, name=name)
    _log.info("%s: %s", trained.run.config().recipe, version.describe())
    return str(version)


@phase("pictures", "pictures · {trained.run.name}", timeout=SECONDS_TO_REGISTER)
def show(trained: TrainedRun, evaluation: DetectorEvaluation, dataset: str) -> Path:
    """Draw what the detector finds, and keep it on Prefect's page."""
    file = trained.run.path / "pictures" / f"{evaluation.protocol}.png"
    pictures_of(open_dataset(Workspace.of(), dataset), evaluation, file)
    with open_image(file.read_bytes()) as image:
        image.thumbnail((_WIDEST, _WIDEST))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=80)
    recipe = trained.run.config().recipe
    create_markdown_artifact(
        key=key_of("pictures", recipe),
        markdown=f"![what it finds](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})",
        description=f"{recipe}: what it finds in {dataset}; white: what is there",
    )
    return file


@flow(name="detection-train", flow_run_name=_named)
@logged
@form
def detection_train(
    dataset: DatasetName,
    family: DetectionFamily = "voc",
    network: DetectionNetwork = "fasterrcnn-resnet50-c4",
    steps: Steps = None,
    workers: Workers = None,
    launcher: Launcher = "ray",
    max_failures: MaxFailures = 3,
    mirror: Mirror = None,
    seed: Seed = None,
    initial_weights: InitialReference = None,
    deepen: Deepen = False,
    overrides: Overrides = None,
    registered: Registered = True,
    registered_as: RegisteredAs = None,
    profile: Profile = False,
    price: Price = None,
    validate_aside: ValidateAside = False,
) -> JsonObject:
    """Train a detector on a dataset with boxes, by default as the paper did, test it, register it, draw what it finds.

    Started again with the same parameters, it resumes.
    """
    config = run_config(f"{family}/{network}", overrides, steps=steps, seed=seed)
    launch = Launch(
        launcher=launcher, workers=workers, max_failures=max_failures, mirror=mirror, profile=profile, price=price,
        validate_aside=validate_aside,
    )  # fmt: skip
    initial = InitialWeights.of(initial_weights, deepened=deepen)
    check_network_name(registered_as, registered=registered)
    done = trained_and_tested(
        config, dataset, launch, initial, lambda trained: outcome(find([str(trained.run.path)], dataset))
    )
    if done is None:
        return {}
    trained, (evaluation,), links = done
    version = outcome(register(trained, evaluation, registered_as)) if registered else None
    file = outcome(show(trained, evaluation, dataset))
    found = {"boxes": evaluation.boxes, **({} if evaluation.masks is None else {"masks": evaluation.masks})}
    rows = [_row(config.recipe, kind, metrics, evaluation.images) for kind, metrics in found.items()]
    table(key_of("precision", config.recipe), even(rows), f"Average precision of {config.recipe} on {dataset}, percent")
    show_places(links, trained, registered=registered, pictures=file)
    return {
        "run": str(trained.run.path),
        "version": version,
        "pictures": str(file),
        "average_precision": {kind: {"ap": metrics.ap, "ap50": metrics.ap50} for kind, metrics in found.items()},
        "reused": trained.reused,
        **plain(trained.result),
    }


def _row(recipe: str, kind: str, found: CocoMetrics, images: int) -> JsonObject:
    whole, half = found.intervals or (None, None)
    return {
        "detector": recipe,
        "of": kind,
        "images": images,
        "AP": round(found.ap, 2),
        "AP interval": f"{whole[0]:.2f} to {whole[1]:.2f}" if whole else "",
        "AP50": round(found.ap50, 2),
        "AP50 interval": f"{half[0]:.2f} to {half[1]:.2f}" if half else "",
    }
