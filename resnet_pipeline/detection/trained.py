"""Trained detectors and localisers as files, a finished run's or a registered model's; and what they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from resnet_pipeline.config import RunConfig, TaskName
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.manifest import read_run_config
from resnet_pipeline.data.memory_dataset import IMAGES, EncodedDataset
from resnet_pipeline.data.order import Int64
from resnet_pipeline.detection import untrained
from resnet_pipeline.detection.finding import find_objects
from resnet_pipeline.detection.localisation import LocalisationTask, Protocol
from resnet_pipeline.detection.localiser import Localiser
from resnet_pipeline.detection.networks import Detector
from resnet_pipeline.detection.results import ImageFound
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.predictor import Image
from resnet_pipeline.evaluation.trained_model import MODEL_FILES, check_result
from resnet_pipeline.models.weights import load_own_weights
from resnet_pipeline.training.context import LocalContext


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
        dataset = _in_memory(images, self.classes)
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
    detector, given = _loaded(folder, "detection", "a detector")
    assert isinstance(detector, Detector)  # the config says so
    return TrainedDetector(detector=detector, **given)


@dataclass(frozen=True, kw_only=True)
class TrainedLocaliser:
    """A localiser ready to be tested: its config, its classes in the order of its labels, its weights' SHA-256."""

    localiser: Localiser
    config: RunConfig
    classes: tuple[str, ...]
    class_words: tuple[str, ...]
    weights_sha256: str

    def boxes(
        self,
        dataset: Dataset,
        split: str,
        classes: Int64,
        *,
        protocol: Protocol = "dense",
        sides: tuple[int, ...] | None = None,
    ) -> list[ImageFound]:
        """Return a box for each of ``classes`` int64 [N, k] of a split's images, in their order.

        Scores are the probabilities that the box is on an object of the class. ``protocol`` and ``sides`` as
        `LocalisationTask.localise`.

        Example: ``load_localiser(run.path).boxes(dataset, "val", dataset.splits["val"].labels[:, None])[0].box``
        """
        context = LocalContext(device=local_device())
        task = LocalisationTask(self.config, dataset, context, trains=False)
        network = self.localiser.to(context.device)
        boxes, logits = task.localise(network, split, classes, protocol=protocol, sides=sides)
        scores = torch.from_numpy(logits).sigmoid().numpy()
        return [
            ImageFound(box=box, score=score, label=label)
            for box, score, label in zip(boxes, scores, classes, strict=True)
        ]

    def find(self, images: Sequence[Image], classes: Sequence[Sequence[int]]) -> list[ImageFound]:
        """Return a box for each of an image's ``classes``, one at least, in images that were checked.

        They take the path of a tested image, as `TrainedDetector.find`.
        """
        most = max(map(len, classes), default=0)
        padded = np.array([[*own, *[own[0]] * (most - len(own))] for own in classes], np.int64)
        found = self.boxes(_in_memory(images, self.classes), IMAGES, padded)
        return [
            ImageFound(box=each.box[: len(own)], score=each.score[: len(own)], label=each.label[: len(own)])
            for each, own in zip(found, classes, strict=True)
        ]


def localiser_protocol(config: RunConfig, protocol: Protocol, sides: tuple[int, ...] | None = None) -> str:
    """Return how a localiser of this config is tested, as a part of a file's name.

    >>> from resnet_pipeline.recipes import get_recipe
    >>> localiser_protocol(get_recipe("ilsvrc-loc/resnet101"), "dense")
    'boxes-dense-224-256-384-480-640'
    """
    views = config.views
    if protocol == "center":
        return f"boxes-center-{views.crop}-of-{views.resize}"
    return f"boxes-dense-{'-'.join(map(str, sides or views.scales))}"


def load_localiser(folder: Path) -> TrainedLocaliser:
    """Load the localiser of a finished run's directory or of a registered model; UserError if it holds none.

    Example: ``load_localiser(run.path).classes``
    """
    localiser, given = _loaded(folder, "localisation", "a localiser")
    if not isinstance(localiser, Localiser):
        raise UserError(f"{folder} is an R-CNN ({given['config'].recipe}): name the localiser, and it with --rcnn")
    return TrainedLocaliser(localiser=localiser, **given)


def _loaded(folder: Path, task: TaskName, what: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a folder in evaluation mode, and what is known of it; UserError if it is for another."""
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


def _in_memory(images: Sequence[Image], classes: Sequence[str]) -> EncodedDataset:
    return EncodedDataset(
        [image.data for image in images],
        [(image.height, image.width) for image in images],
        [f"image {number}" for number in range(1, len(images) + 1)],
        classes,
    )
