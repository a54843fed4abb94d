"""What flows of detectors and localisers share: tests and tables, pictures on Prefect's page, the gate."""

from __future__ import annotations

import base64
import io
import logging
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from flows.artifacts import even, key_of, table
from flows.shell import outcome, phase
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.data.image_files import open_image
from resnet_pipeline.jobs.detect import (
    DetectionTest,
    DetectorEvaluation,
    evaluate_detectors,
    evaluate_detectors_together,
    tested_part,
)
from resnet_pipeline.jobs.pictures import pictures_of
from resnet_pipeline.jobs.promote import gated
from resnet_pipeline.jobs.promote_results import promote_by_results
from resnet_pipeline.jobs.register import Registration
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.records import JsonObject
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_WIDEST = 900  # pixels of the pictures on Prefect's page, which keeps them as text
_SECONDS_TO_DRAW = 3600.0


@phase("evaluate", "evaluate · {test.dataset} · objects")
def find(models: list[str], test: DetectionTest, *, together: bool = False) -> list[DetectorEvaluation]:
    """Test detectors, each alone or all ``together`` as one; kept result files are reused."""
    if together:
        return [evaluate_detectors_together(Workspace.of(), models, test)]
    return evaluate_detectors(Workspace.of(), models, test)


@phase("pictures", "pictures · {title}", timeout=_SECONDS_TO_DRAW)
def draw(evaluation: DetectorEvaluation, test: DetectionTest, title: str, file: Path) -> Path:
    """Draw what a detector finds, and keep it on Prefect's page."""
    dataset = tested_part(open_dataset(Workspace.of(), test.dataset), evaluation.split, test.images)
    pictures_of(dataset, evaluation.results, file, of=evaluation.reference)
    show_picture(file, title, f"what it finds in {test.dataset}; white: what is there")
    return file


@phase("promote", "promote · {version}", timeout=_SECONDS_TO_DRAW)
def gate(version: str) -> tuple[bool, str, str | None]:
    """Let a registered detector or localiser through the gate, or say why not."""
    found = gated(lambda: promote_by_results(Workspace.of(), version))
    _log.info("%s is %s: %s", version, "the champion" if found[0] else "no champion", found[1])
    return found


def through_the_gate(trained: TrainedRun, *, registered: bool) -> JsonObject:
    """Return what came of the gate for a run's version, as the flow's result has it; nothing if there is none."""
    registration = Registration.of(trained.run) if registered else None
    if registration is None:
        return {}
    promoted, reason, serve = outcome(gate(registration.uri))
    return {"promoted": promoted, "promotion": reason, "serve": serve}


def show_picture(file: Path, title: str, what: str) -> None:
    """Keep a picture as an artifact that holds it, made smaller."""
    with open_image(file.read_bytes()) as image:
        image.thumbnail((_WIDEST, _WIDEST))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=80)
    create_markdown_artifact(
        key=key_of("pictures", title),
        markdown=f"![{what}](data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()})",
        description=f"{title}: {what}",
    )


def show_precision(evaluations: list[DetectorEvaluation], title: str, dataset: str) -> None:
    """Keep the detectors' average precision as a table, in percent with 95 % intervals."""
    rows: list[JsonObject] = [
        {
            "detector": evaluation.reference,
            "of": found.kind,
            "images": found.images,
            "AP": round(found.ap, 2),
            "AP interval": f"{found.ap_interval[0]:.2f} to {found.ap_interval[1]:.2f}",
            "AP50": round(found.ap50, 2),
            "AP50 interval": f"{found.ap50_interval[0]:.2f} to {found.ap50_interval[1]:.2f}",
        }
        for evaluation in evaluations
        for found in evaluation.measured()
    ]
    table(key_of("precision", title), even(rows), f"Average precision of {title} on {dataset}, percent")


def tested_detectors(models: list[str], test: DetectionTest, *, together: bool = False) -> list[JsonObject]:
    """Test detectors, each alone or all together as one, show what came of it, and return what ``--json`` has."""
    evaluations = outcome(find(models, test, together=together))
    for evaluation in evaluations:
        outcome(draw(evaluation, test, evaluation.reference, evaluation.path.with_suffix(".png")))
    show_precision(evaluations, "an ensemble" if together else "detectors", test.dataset)
    return [evaluation.row() for evaluation in evaluations]
