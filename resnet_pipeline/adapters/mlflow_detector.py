"""What ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` run for a registered detector; no pickle.

In: a column ``image``, as `adapters.mlflow_model` takes it. Out, per image: ``boxes`` (left, top, right, bottom in
pixels of the image), their ``labels``, ``words`` and ``scores``, best first, and ``masks``, each as COCO's run lengths
in JSON, none of a detector without masks. Parameter: ``least_score`` (0.5), below which nothing is returned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_pipeline.adapters.serving import Door, refusal
from resnet_pipeline.detection.batches import detector_pixels
from resnet_pipeline.detection.results import ImageFound
from resnet_pipeline.detection.trained import TrainedDetector, load_detector
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError

DEFAULTS = {"least_score": 0.5}
"""The parameter's default."""


class ServedDetector:
    """A detector as an MLflow python function."""

    def __init__(self, trained: TrainedDetector) -> None:
        self._trained, self._door = trained, Door()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return a DataFrame with the columns boxes, labels, words, scores and masks, for one with a column ``image``.

        Raises MlflowException as `adapters.mlflow_model`'s.
        """
        options = {**DEFAULTS, **(params or {})}
        with self._door.opened(model_input, self._largest, "before they are searched") as images:
            least = float(options["least_score"])
            if not 0 <= least <= 1:
                raise UserError(f"the parameter least_score must lie between 0 and 1, not {least:g}")
            found = self._trained.find(images, device=local_device(), least_score=least)
        table = objects_table(found, self._trained.classes, self._trained.class_words)
        return table.assign(masks=[[json.dumps(mask) for mask in each.mask or ()] for each in found])

    def _largest(self, height: int, width: int) -> int:
        config = self._trained.config
        assert config.detection is not None  # load_detector has looked
        return detector_pixels(height, width, config.views.resize, config.detection.longest)


def objects_table(found: Sequence[ImageFound], classes: Sequence[str], words: Sequence[str]) -> Any:
    """Return a DataFrame with the columns boxes, labels, words and scores, a row of lists for each image."""
    import pandas

    return pandas.DataFrame(
        {
            "boxes": [each.box.tolist() for each in found],
            "labels": [[classes[k] for k in each.label] for each in found],
            "words": [[words[k] for k in each.label] for each in found],
            "scores": [each.score.tolist() for each in found],
        }
    )


def _load_pyfunc(path: str) -> ServedDetector:
    """MLflow's entry point: ``path`` is the folder that was logged."""
    try:
        return ServedDetector(load_detector(Path(path)))
    except UserError as error:
        raise refusal(error) from None
