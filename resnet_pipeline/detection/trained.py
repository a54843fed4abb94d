"""Trained detectors as files, a finished run's or a registered model's, and what they find; how such files are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from resnet_pipeline.config import RunConfig, TaskName
from resnet_pipeline.data.manifest import read_run_config
from resnet_pipeline.data.memory_dataset import IMAGES, EncodedDataset
from resnet_pipeline.detection import untrained
from resnet_pipeline.detection.finding import find_objects
from resnet_pipeline.detection.networks import Detector
from resnet_pipeline.detection.results import ImageFound
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.predictor import Image
from resnet_pipeline.evaluation.trained_model import MODEL_FILES, check_result
from resnet_pipeline.models.weights import load_own_weights


@dataclass(frozen=True, kw_only=True)
class TrainedDetector:
    """A detector ready to be tested: its config, its classes in the order of its labels, and its weights' SHA-256."""

    detector: Detector
    config: RunConfig
    classes: tuple[str, ...]
    class_words: tuple[str, ...]
    weights_sha256: str

    @property
    def protocol(self) -> str:
        """How it is tested, as a part of a file's name: the shorter and the longer side of images.

        Example: ``load_detector(run.path).protocol`` is ``objects-600-1000``.
        """
        return protocol_of(self.config)

    @property
    def masks(self) -> bool:
        """Whether it finds masks, too."""
        return self.config.detection is not None and self.config.detection.masks

    def find(self, images: Sequence[Image], *, device: torch.device, least_score: float = 0.0) -> list[ImageFound]:
        """Return what it finds in images that ``evaluation.predictor.checked`` passed, with at least this score.

        They take the path of a tested image: decoded, resized and searched by the evaluation's own code.
        """
        dataset = in_memory(images, self.classes)
        found = find_objects(self.detector.to(device), dataset, IMAGES, self.config, device=device)
        return [above(each, least_score) for each in found]


def protocol_of(config: RunConfig) -> str:
    """Return how a detector of this config is tested.

    >>> from resnet_pipeline.recipes import get_recipe
    >>> protocol_of(get_recipe("voc/fasterrcnn-resnet50-c4"))
    'objects-600-1000'
    """
    assert config.detection is not None  # it is a detector's
    return f"objects-{config.views.resize}-{config.detection.longest}"


def above(found: ImageFound, least_score: float) -> ImageFound:
    """Return what has at least this score, best first.

    Example: ``above(results.found[0], 0.5).label``
    """
    rows = [int(row) for row in np.argsort(-found.score, kind="stable") if found.score[row] >= least_score]
    masks = None if found.mask is None else [found.mask[row] for row in rows]
    return ImageFound(box=found.box[rows], score=found.score[rows], label=found.label[rows], mask=masks)


def load_detector(folder: Path) -> TrainedDetector:
    """Load the detector of a finished run's directory or of a registered model; UserError if it holds none.

    Example: ``load_detector(run.path).detector``
    """
    detector, given = loaded(folder, "detection", "a detector")
    assert isinstance(detector, Detector)  # the config says so
    return TrainedDetector(detector=detector, **given)


def loaded(folder: Path, task: TaskName, what: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a folder in evaluation mode, and what is known of it; UserError if it is for another.

    ``what`` names what is needed. Known are, by name, what a `TrainedDetector` has beside its detector.

    Example: ``loaded(run.path, "localisation", "a localiser")``
    """
    for file in MODEL_FILES:
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}: it is no finished run")
    config, dataset = read_run_config(folder / MODEL_FILES[1])
    if config.task != task:
        raise UserError(f"{folder} is of {config.recipe}, which is for {config.task}, and {what} is needed here")
    network = untrained(config, classes=len(dataset.classes))
    digest = load_own_weights(network, folder / MODEL_FILES[0])
    check_result(folder, digest)
    known = {"config": config, "classes": dataset.classes, "class_words": dataset.words, "weights_sha256": digest}
    return network.eval(), known


def in_memory(images: Sequence[Image], classes: Sequence[str]) -> EncodedDataset:
    """Return images that ``evaluation.predictor.checked`` passed as a dataset whose one split is `IMAGES`.

    Example: ``in_memory(checked([data]), ["dog"]).splits``
    """
    return EncodedDataset(
        [image.data for image in images],
        [(image.height, image.width) for image in images],
        [f"image {number}" for number in range(1, len(images) + 1)],
        classes,
    )
