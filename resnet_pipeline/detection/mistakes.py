"""What a detector gets wrong: objects that it takes for others or misses, and what it finds where nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resnet_pipeline.data.objects import ImageObjects
from resnet_pipeline.detection.metrics import Float64, overlaps
from resnet_pipeline.detection.results import ImageFound

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Matches:
    """An image's objects and detections, by their rows: pairs int64 [K, 2] of both, and those that have no partner.

    ``right`` pairs are of one class, ``confused`` ones of two; ``missed`` int64 [M] are objects, ``invented`` [F]
    detections.
    """

    right: Int64
    confused: Int64
    missed: Int64
    invented: Int64

    @property
    def wrong(self) -> int:
        """How many mistakes these are."""
        return len(self.confused) + len(self.missed) + len(self.invented)


def matches_of(truth: ImageObjects, found: ImageFound, *, iou: float = 0.5) -> Matches:
    """Match an image's detections, best first, with the objects that they overlap most, by an IoU of at least ``iou``.

    First with objects of their own class; what is left then with any. Crowds and VOC's difficult objects are not
    missed, and what overlaps one is not invented.

    Example: ``matches_of(objects.of(0), results.found[0]).missed``
    """
    shared = overlaps(found.box, truth.box)
    counted = ~(truth.crowd | truth.difficult)
    own = found.label[:, None] == truth.label[None, :]
    free_objects, free = counted.copy(), np.ones(len(found), np.bool_)
    right = _paired(np.where(own, shared, 0), found.score, free, free_objects, iou)
    confused = _paired(shared, found.score, free, free_objects, iou)
    aside = (shared[:, ~counted] >= iou).any(axis=1)
    return Matches(
        right=right, confused=confused, missed=np.flatnonzero(free_objects), invented=np.flatnonzero(free & ~aside)
    )


def confusions(truth: Sequence[ImageObjects], found: Sequence[ImageFound], classes: int) -> Int64:
    """Return how often each class was taken for each, int64 [C + 1, C + 1]; the last row and column are "nothing".

    Rows are what is there, columns what was found: the last column counts what was missed, the last row what was found
    where nothing is.

    Example: ``confusions([objects.of(i) for i in range(len(objects))], results.found, len(dataset.classes))[:, -1]``
    """
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for there, own in zip(truth, found, strict=True):
        matches = matches_of(there, own)
        for pairs in (matches.right, matches.confused):
            np.add.at(counts, (there.label[pairs[:, 0]], own.label[pairs[:, 1]]), 1)
        np.add.at(counts[:, classes], there.label[matches.missed], 1)
        np.add.at(counts[classes], own.label[matches.invented], 1)
    return counts


def _paired(
    shared: Float64, score: Float64, free: npt.NDArray[np.bool_], free_objects: npt.NDArray[np.bool_], iou: float
) -> Int64:
    """Return pairs int64 [K, 2] (object, detection), and mark both as taken."""
    pairs = []
    for row in np.argsort(-score, kind="stable"):
        if not free[row] or not free_objects.any():
            continue
        best = int(np.where(free_objects, shared[row], -1.0).argmax())
        if shared[row, best] >= iou:
            pairs.append((best, int(row)))
            free[row] = free_objects[best] = False
    return np.array(pairs, np.int64).reshape(-1, 2)
