"""Trained localisers as files, alone or with the R-CNN that moves their boxes, and the boxes that they give."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from resnet_pipeline.config import RegionsConfig, RunConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.memory_dataset import IMAGES
from resnet_pipeline.data.order import Int64
from resnet_pipeline.detection.localisation import LocalisationTask, Protocol
from resnet_pipeline.detection.localiser import Localiser
from resnet_pipeline.detection.metrics import Float64
from resnet_pipeline.detection.proposals import find_boxes
from resnet_pipeline.detection.rcnn import RegionNetwork, rescored
from resnet_pipeline.detection.results import ImageFound
from resnet_pipeline.detection.trained import in_memory, loaded
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.predictor import Image
from resnet_pipeline.evaluation.trained_model import LOCALISER_FOLDER
from resnet_pipeline.training.context import LocalContext


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """A config, the classes in the order of the labels, and the SHA-256 of the weights, or of all together."""

    config: RunConfig
    classes: tuple[str, ...]
    class_words: tuple[str, ...]
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class BoxGiver(_Trained, ABC):
    """What gives each class of an image a box."""

    @property
    @abstractmethod
    def sides(self) -> tuple[int, ...]:
        """The shorter sides at which whole images are seen."""

    @abstractmethod
    def tested_as(self, protocol: Protocol, sides: tuple[int, ...] | None = None) -> str:
        """Return how it is tested, as a part of a file's name; UserError if it can't be."""

    @abstractmethod
    def boxes(
        self,
        dataset: Dataset,
        split: str,
        classes: Int64,
        *,
        protocol: Protocol = "dense",
        sides: tuple[int, ...] | None = None,
        on_images: Callable[[int], None] = lambda images: None,
    ) -> list[ImageFound]:
        """Return a box for each of ``classes`` int64 [N, k] of a split's images, in their order.

        Scores are the probabilities that the box is on an object of the class. ``protocol`` and ``sides`` as
        `LocalisationTask.localise`; ``on_images`` hears of the images of each batch.
        """

    def find(self, images: Sequence[Image], classes: Sequence[Sequence[int]]) -> list[ImageFound]:
        """Return a box for each of an image's ``classes``, one at least, in images that were checked.

        They take the path of a tested image, as `TrainedDetector.find`.
        """
        most = max(map(len, classes), default=0)
        padded = np.array([[*own, *[own[0]] * (most - len(own))] for own in classes], np.int64)
        found = self.boxes(in_memory(images, self.classes), IMAGES, padded)
        return [
            ImageFound(box=each.box[: len(own)], score=each.score[: len(own)], label=each.label[: len(own)])
            for each, own in zip(found, classes, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class TrainedLocaliser(BoxGiver):
    """A localiser ready to be tested.

    Example: ``load_localiser(run.path).boxes(dataset, "val", dataset.splits["val"].labels[:, None])[0].box``
    """

    localiser: Localiser

    @property
    def sides(self) -> tuple[int, ...]:
        """The recipe's ``views.scales``."""
        return self.config.views.scales

    def tested_as(self, protocol: Protocol, sides: tuple[int, ...] | None = None) -> str:
        """Return how it is tested: ``boxes-dense-224-256-384-480-640``, or ``boxes-center-224-of-256``."""
        views = self.config.views
        if protocol == "center":
            return f"boxes-center-{views.crop}-of-{views.resize}"
        return f"boxes-dense-{_listed(sides or self.sides)}"

    def boxes(
        self,
        dataset: Dataset,
        split: str,
        classes: Int64,
        *,
        protocol: Protocol = "dense",
        sides: tuple[int, ...] | None = None,
        on_images: Callable[[int], None] = lambda images: None,
    ) -> list[ImageFound]:
        """Return the likeliest box of each class, as `BoxGiver.boxes`."""
        context = LocalContext(device=local_device())
        task = LocalisationTask(self.config, dataset, context, trains=False)
        network = self.localiser.to(context.device)
        boxes, logits = task.localise(network, split, classes, protocol=protocol, sides=sides, on_images=on_images)
        return _found(boxes, torch.from_numpy(logits).sigmoid().numpy(), classes)


@dataclass(frozen=True, kw_only=True)
class TrainedRegions(_Trained):
    """An R-CNN ready to be tested, whose config says of which localiser's boxes."""

    network: RegionNetwork

    @property
    def regions(self) -> RegionsConfig:
        """The config's ``regions``."""
        assert self.config.regions is not None  # load_regions has looked
        return self.config.regions


@dataclass(frozen=True, kw_only=True)
class TwoStage(BoxGiver):
    """Localisers whose best boxes R-CNNs score again and move (the paper, appendix C); several are an ensemble.

    The boxes of all localisers are taken together, the R-CNNs' probabilities and deltas are averaged. A pair is known
    by its R-CNN's weights, which are trained on one localiser's boxes.

    Example: ``TwoStage.of([load_localiser(run.path)], [load_regions(rcnn.path)]).weights_sha256``
    """

    first: tuple[TrainedLocaliser, ...]
    second: tuple[TrainedRegions, ...]

    @classmethod
    def of(cls, first: Sequence[TrainedLocaliser], second: Sequence[TrainedRegions]) -> TwoStage:
        """Put the stages together; UserError unless each R-CNN was trained on the boxes of one of the localisers."""
        known = {one.weights_sha256 for one in first}
        for one in second:
            if one.regions.localiser not in known:
                raise UserError(
                    f"{one.config.recipe} ({one.weights_sha256[:12]}…) was trained on the boxes of another localiser, "
                    f"whose weights have the SHA-256 {str(one.regions.localiser)[:12]}…"
                )
        if len({one.config.augment.crop for one in second}) > 1:
            raise UserError("these R-CNNs see regions of different sizes (augment.crop), so they can't be averaged")
        members: list[_Trained] = [*first, *second]
        if len({one.classes for one in members}) > 1:
            raise UserError("these localisers and R-CNNs have different classes, so they can't be tested together")
        weights = [one.weights_sha256 for one in members]
        return cls(
            config=second[0].config,
            classes=second[0].classes,
            class_words=second[0].class_words,
            weights_sha256=weights[1] if len(weights) == 2 else hashlib.sha256(" ".join(weights).encode()).hexdigest(),
            first=tuple(first),
            second=tuple(second),
        )

    @property
    def sides(self) -> tuple[int, ...]:
        """Those of all localisers."""
        return tuple(dict.fromkeys(side for one in self.first for side in one.sides))

    @property
    def others(self) -> tuple[str, ...]:
        """The SHA-256 of the weights of all but the first R-CNN; none of a pair, which that one stands for."""
        members: list[_Trained] = [*self.first, *self.second[1:]]
        return tuple(one.weights_sha256 for one in members) if len(members) > 1 else ()

    @property
    def count(self) -> int:
        """How many of each localiser's best boxes of a class are regions."""
        return max(one.regions.proposals for one in self.second)

    def tested_as(self, protocol: Protocol, sides: tuple[int, ...] | None = None) -> str:
        """Return how it is tested: ``boxes-dense-224-256-384-480-640-200-regions-224``."""
        if (protocol, sides) != ("dense", None):
            raise UserError("an R-CNN looks at the boxes of whole images: leave out --protocol center and --scales")
        return f"boxes-dense-{_listed(self.sides)}-{self.count}-regions-{self.config.augment.crop}"

    def boxes(
        self,
        dataset: Dataset,
        split: str,
        classes: Int64,
        *,
        protocol: Protocol = "dense",
        sides: tuple[int, ...] | None = None,
        on_images: Callable[[int], None] = lambda images: None,
    ) -> list[ImageFound]:
        """Return the box of each class that the R-CNNs find likeliest, moved by them, as `BoxGiver.boxes`."""
        self.tested_as(protocol, sides)
        device, rows = local_device(), np.arange(len(classes), dtype=np.int64)
        known = [
            find_boxes(
                one.localiser.to(device), dataset, split, rows, classes, sides=one.sides, count=self.count,
                batch_size=one.config.micro_batch, device=device,
            )
            for one in self.first
        ]  # fmt: skip
        found, likely = rescored(
            [one.network.to(device) for one in self.second], dataset, split, rows, classes,
            np.concatenate(known, axis=2), crop=self.config.augment.crop, batch_size=2 * self.config.micro_batch,
            device=device, on_images=on_images,
        )  # fmt: skip
        return _found(found, likely, classes)


def load_localiser(folder: Path) -> TrainedLocaliser:
    """Load the localiser of a finished run's directory or of a registered model; UserError if it holds none.

    Example: ``load_localiser(run.path).classes``
    """
    network, given = loaded(folder, "localisation", "a localiser")
    if not isinstance(network, Localiser):
        raise UserError(f"{folder} is an R-CNN ({given['config'].recipe}): name the localiser, and it with --rcnn")
    return TrainedLocaliser(localiser=network, **given)


def load_regions(folder: Path) -> TrainedRegions:
    """Load the R-CNN of a finished run's directory or of a registered model; UserError if it holds none.

    Example: ``load_regions(run.path).regions.localiser``
    """
    network, given = loaded(folder, "localisation", "an R-CNN")
    if not isinstance(network, RegionNetwork):
        raise UserError(f"{folder} is no R-CNN ({given['config'].recipe}); --rcnn takes those of ilsvrc-loc/rcnn-…")
    return TrainedRegions(network=network, **given)


def load_box_giver(folder: Path) -> BoxGiver:
    """Load a localiser, or a registered R-CNN with its localiser, which is in a folder of its folder.

    Raises UserError as `load_localiser`, also for an R-CNN without its localiser.

    Example: ``load_box_giver(run.path).find(images, [[0]] * len(images))``
    """
    place = folder / LOCALISER_FOLDER
    return TwoStage.of([load_localiser(place)], [load_regions(folder)]) if place.is_dir() else load_localiser(folder)


def find_by_classes(
    giver: BoxGiver,
    classes: Int64,
    protocol: Protocol,
    sides: tuple[int, ...] | None,
    dataset: Dataset,
    split: str,
    places: Int64,
    on_images: Callable[[int], None],
) -> list[ImageFound]:
    """Return the boxes of ``classes`` int64 [N, k], by place: with its first four arguments given it is a `Find`.

    Example: ``partial(find_by_classes, load_localiser(run.path), classes, "dense", None)``
    """
    return giver.boxes(dataset, split, classes[places], protocol=protocol, sides=sides, on_images=on_images)


def _listed(sides: Sequence[int]) -> str:
    return "-".join(map(str, sides))


def _found(boxes: Float64, scores: Float64, classes: Int64) -> list[ImageFound]:
    return [
        ImageFound(box=box, score=score, label=label) for box, score, label in zip(boxes, scores, classes, strict=True)
    ]
