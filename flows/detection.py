"""detection-train: a detector's recipe to a tested, registered model version, with pictures of what it finds."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

from prefect import flow
from prefect.runtime import flow_run

from flows.boxes import draw, find, show_precision, through_the_gate
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
from resnet_pipeline.jobs.detect import DetectionTest, DetectorEvaluation
from resnet_pipeline.jobs.initial_weights import InitialWeights
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.register import check_network_name
from resnet_pipeline.jobs.register_detector import register_detector
from resnet_pipeline.jobs.train import TrainedRun, run_config
from resnet_pipeline.records import JsonObject, plain
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

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


@phase("register", "register · {trained.run.name}", timeout=SECONDS_TO_REGISTER)
def register(trained: TrainedRun, evaluation: DetectorEvaluation, name: str | None) -> str:
    """Register the detector with its precision."""
    version = register_detector(Workspace.of(), trained, evaluation, name=name)
    _log.info("%s: %s", trained.run.config().recipe, version.describe())
    return str(version)


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

    It becomes the champion of its name if it is better than the one before by more than chance.

    Started again with the same parameters, it resumes.
    """
    config = run_config(f"{family}/{network}", overrides, steps=steps, seed=seed)
    launch = Launch(
        launcher=launcher, workers=workers, max_failures=max_failures, mirror=mirror, profile=profile, price=price,
        validate_aside=validate_aside,
    )  # fmt: skip
    initial = InitialWeights.of(initial_weights, deepened=deepen)
    check_network_name(registered_as, registered=registered)
    test = DetectionTest(dataset=dataset)
    done = trained_and_tested(
        config, dataset, launch, initial, lambda trained: outcome(find([str(trained.run.path)], test))
    )
    if done is None:
        return {}
    trained, (evaluation,), links = done
    version = outcome(register(trained, evaluation, registered_as)) if registered else None
    drawn = trained.run.path / "pictures" / f"{evaluation.protocol}.png"
    file = outcome(draw(evaluation, test, config.recipe, drawn))
    found = {"boxes": evaluation.boxes, **({} if evaluation.masks is None else {"masks": evaluation.masks})}
    show_precision([evaluation], config.recipe, dataset)
    promotion = through_the_gate(trained, registered=registered)
    show_places(links, trained, registered=registered, pictures=file)
    return {
        "run": str(trained.run.path),
        "version": version,
        **promotion,
        "pictures": str(file),
        "average_precision": {kind: {"ap": metrics.ap, "ap50": metrics.ap50} for kind, metrics in found.items()},
        "reused": trained.reused,
        **plain(trained.result),
    }
