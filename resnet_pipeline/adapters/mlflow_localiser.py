"""What ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` run for a registered localiser; no pickle.

It stands alone, or an R-CNN moves its boxes.

In: a column ``image``, as `adapters.mlflow_model` takes it, and if wanted a column ``classes``: for each image a list
of names, or of words, of classes. Out, per image: ``boxes`` (left, top, right, bottom in pixels of the image), one for
each class, their ``labels``, ``words`` and ``scores``. Where no classes are named, the model's own classifier names its
likeliest, if it was registered with one; parameter: ``top`` (5), how many.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from resnet_pipeline.adapters.mlflow.ensembles import CLASSIFIER, load_members
from resnet_pipeline.adapters.mlflow.serving import CLASSES, TOP
from resnet_pipeline.adapters.mlflow_detector import objects_table
from resnet_pipeline.adapters.mlflow_model import download
from resnet_pipeline.adapters.serving import Door, refusal
from resnet_pipeline.data.crops import largest_resized
from resnet_pipeline.detection.named_classes import ClassNamer
from resnet_pipeline.detection.trained_localiser import BoxGiver, load_box_giver
from resnet_pipeline.errors import UserError


class ServedLocaliser:
    """A localiser, alone or with its R-CNN, as an MLflow python function."""

    def __init__(self, trained: BoxGiver, namer: ClassNamer) -> None:
        self._trained, self._namer, self._door = trained, namer, Door()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return a DataFrame with the columns boxes, labels, words and scores, for one with a column ``image``.

        Raises MlflowException as `adapters.mlflow_model`'s.
        """
        top = int({"top": TOP, **(params or {})}["top"])
        with self._door.opened(model_input, self._largest, "before they are searched") as images:
            given = list(model_input[CLASSES]) if CLASSES in model_input else [None] * len(images)
            classes = self._namer.classes(images, [_listed(names) for names in given], top=top)
            found = self._trained.find(images, classes)
        return objects_table(found, self._trained.classes, self._trained.class_words)

    def _largest(self, height: int, width: int) -> int:
        return largest_resized(height, width, self._trained.sides)


def _listed(names: Any) -> list[str] | None:
    """Return an image's classes: a list, an array, or one name; None where there is nothing."""
    if names is None or isinstance(names, float):  # pandas' NaN
        return None
    return [names] if isinstance(names, str) else [str(name) for name in names]


def _load_pyfunc(path: str) -> ServedLocaliser:
    """MLflow's entry point: ``path`` is the folder that was logged."""
    try:
        trained, place = load_box_giver(Path(path)), Path(path) / CLASSIFIER
        members = load_members(place, download) if place.is_dir() else []
        return ServedLocaliser(trained, ClassNamer(trained, members))
    except UserError as error:
        raise refusal(error) from None
