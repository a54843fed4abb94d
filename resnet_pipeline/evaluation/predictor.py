"""Single images through trained networks: audited as staging does, then tested as the evaluation tests a dataset."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from resnet_pipeline.data.crops import largest_resized
from resnet_pipeline.data.image_audit import audit
from resnet_pipeline.data.image_files import DEFAULT_LIMITS, Limits
from resnet_pipeline.data.memory_dataset import IMAGES, EncodedDataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.confusion import top_classes
from resnet_pipeline.evaluation.protocols import Protocol, protocol_of
from resnet_pipeline.evaluation.scoring import Prepared, plan_chunks, prepare, score_chunks
from resnet_pipeline.evaluation.trained_model import Member
from resnet_pipeline.models import Classifier
from resnet_pipeline.parallel import cores


@dataclass(frozen=True)
class Image:
    """An image that can be decoded: its bytes as staging would pack them, and its size."""

    data: bytes
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The best classes of N images, best first: numbers int64 [N, K], probabilities float32 [N, K]."""

    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]


class Predictor:
    """One network, or several whose probabilities are averaged, with the words for its classes.

    Raises UserError if the networks have different classes.

    Example: ``Predictor([load_folder(run.path)], device).predict(images, protocol="center", top=5)``
    """

    def __init__(self, members: Sequence[Member], device: torch.device | None = None) -> None:
        self.members, self._device = list(members), device
        self._prepared: dict[str, dict[Protocol, Prepared]] = {}
        first = self.members[0]
        for member in self.members[1:]:
            if member.classes != first.classes:
                raise UserError(f"{member.name} and {first.name} can't be averaged: their classes differ")
        self.classes, self.class_words = first.classes, first.class_words

    def predict(self, images: Sequence[Image], *, protocol: str = "center", top: int = 5) -> Predictions:
        """Return the ``top`` best classes of images that ``checked`` passed, tested under a protocol by name.

        The images are decoded, resized and cropped by the evaluation's own code, so the probabilities are those of a
        score file of the same images. Raises UserError for an unknown protocol.
        """
        dataset = EncodedDataset(
            [image.data for image in images],
            [(image.height, image.width) for image in images],
            [f"image {number}" for number in range(1, len(images) + 1)],
            self.classes,
        )
        total = np.zeros((len(images), len(self.classes)), dtype=np.float64)
        for views, networks in self._prepared_for(protocol).items():
            plan = plan_chunks(dataset, IMAGES, views, np.arange(len(images), dtype=np.int64))
            scored = score_chunks(networks, plan, device=self._device)
            for chunk, found in zip(plan.chunks, scored, strict=True):
                for scores in found.values():
                    total[chunk] += scores.probabilities
        # of an ensemble the mean of softmax, as `ensemble.average` takes of kept scores
        mean = (total / len(self.members)).astype(np.float32)
        best = top_classes(mean, top)
        return Predictions(classes=best, probabilities=np.take_along_axis(mean, best, 1))

    def largest(self, height: int, width: int, protocol: str) -> int:
        """Return the most pixels that an image of this size has while it is tested, decoded or made larger.

        Raises UserError for an unknown protocol.
        """
        most = height * width
        for member in self.members:
            views = protocol_of(protocol, member.views)
            if views.kind == "whole":
                most = max(most, largest_resized(height, width, views.sides))
        return most

    def _prepared_for(self, protocol: str) -> Mapping[Protocol, Prepared]:
        """Return the members by their own form of the protocol; they are prepared at its first use."""
        if protocol not in self._prepared:
            sets: dict[Protocol, dict[str, Classifier]] = {}
            for number, member in enumerate(self.members):
                sets.setdefault(protocol_of(protocol, member.views), {})[str(number)] = member.classifier
            digests = {str(number): member.weights_sha256 for number, member in enumerate(self.members)}
            self._prepared[protocol] = {
                views: prepare(group, views, self._device, digests=digests) for views, group in sets.items()
            }
        return self._prepared[protocol]


def checked(files: Sequence[bytes], limits: Limits = DEFAULT_LIMITS) -> list[Image | str]:
    """Decode each file as staging does; return it as it would be packed, or the reason why it can't be decoded."""
    with warnings.catch_warnings(), ThreadPoolExecutor(min(len(files), cores()) or 1) as pool:
        # audit changes the filters for itself; threads that do so at once may restore them in another order
        return list(pool.map(partial(_checked, limits), files))


def _checked(limits: Limits, data: bytes) -> Image | str:
    found, _ = audit(data, png=data.startswith(b"\x89PNG"), limits=limits)  # as staging does with files named .png
    return found.note if found.refused else Image(found.replacement or data, found.height, found.width)
