"""What a MODEL was trained for: a classifier's, a detector's or a localiser's task; known without loading it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from resnet_pipeline.adapters.mlflow.registry import resolve, task_of_version
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.config import TaskName
from resnet_pipeline.data.manifest import read_run_config
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.paper import ENSEMBLES
from resnet_pipeline.evaluation.trained_model import MODEL_FILES
from resnet_pipeline.jobs.references import RegisteredModel, folder_of, parse
from resnet_pipeline.workspace import Workspace


def named_task(workspace: Workspace, text: str) -> TaskName:
    """Return the task of the model that a text names; classification for what is not there, whoever loads it says so.

    Example: ``named_task(Workspace.of(), "scenes-maskrcnn-resnet8-c4")``
    """
    if text in ENSEMBLES:
        return "classification"
    try:
        reference = parse(workspace, text)
        if isinstance(reference, RegisteredModel):
            return task_of_version(resolve(Tracking(workspace), reference.uri))
        with folder_of(workspace, reference) as folder:
            return _of_folder(folder)
    except UserError:
        pass
    return "classification"


def all_detectors(workspace: Workspace, references: Sequence[str]) -> bool:
    """Return whether these models are detectors; UserError if some are and others are not.

    Example: ``all_detectors(Workspace.of(), ["voc-fasterrcnn-resnet50-c4"])``
    """
    tasks = {text: named_task(workspace, text) for text in references}
    detectors = [text for text, task in tasks.items() if task == "detection"]
    others = [text for text in tasks if text not in detectors]
    if detectors and others:
        raise UserError(f"{detectors[0]} is a detector and {others[0]} is none: test them in two commands")
    return bool(detectors)


def check_no_detectors(*, voc: str | None, refine: bool) -> None:
    """Raise UserError if classifiers are to be tested as only detectors are."""
    if voc is not None or refine:
        raise UserError("--voc and --refine are for detectors; these are classifiers")


def _of_folder(folder: Path) -> TaskName:
    file = folder / MODEL_FILES[1]
    return read_run_config(file)[0].task if file.is_file() else "classification"
