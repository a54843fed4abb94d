"""Average precision of ranked detections, for many samples of the images at once: what intervals are made of.

A sample of the images is how often it has each of them. Its detections stand in the order that those of all images
have, each as often as its image, so they are sorted and matched with objects once, and a sample costs two running sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Recalls = Literal["11", "101", "all"]
"""Where a curve of precision against recall is read: VOC 2007's 11 recalls, COCO's 101, or the area below it."""
Bools = npt.NDArray[np.bool_]
Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_THRESHOLDS = {"11": np.linspace(0, 1, 11), "101": np.linspace(0, 1, 101)}
_MOST_NUMBERS = 4_000_000  # that a sum of many samples holds at once: 32 MB


@dataclass(frozen=True)
class Ranked:
    """The detections of one class in all images, best first, and its objects.

    ``image`` int64 [D] is each detection's, ``right`` and ``wrong`` bool [T, D] say for T IoUs whether it counts as an
    object that is found, or as a mistake; one that is neither does not count. ``objects`` int64 [I] are each image's.
    """

    image: Int64
    right: Bools
    wrong: Bools
    objects: Int64

    @classmethod
    def of(cls, scores: Sequence[Float64], right: Sequence[Bools], wrong: Sequence[Bools], objects: Int64) -> Ranked:
        """Sort what is listed by image: ``scores`` float64 [D], ``right`` and ``wrong`` bool [T, D] of each.

        Example: ``Ranked.of([np.array([0.9])], [np.array([[True]])], [np.array([[False]])], np.array([1]))``
        """
        order = np.argsort(-np.concatenate(scores), kind="stable")
        image = np.repeat(np.arange(len(scores)), [len(own) for own in scores])
        return cls(
            image[order], np.concatenate(right, axis=1)[:, order], np.concatenate(wrong, axis=1)[:, order], objects
        )

    def precision(self, times: Int64, recalls: Recalls) -> Float64:
        """Return the average precision at each IoU in each sample, float64 [T, S] in percent; NaN without objects.

        ``times`` int64 [S, I] says how often a sample has each image. The precision at a recall is the best at that
        recall or a greater one (Everingham et al., 2010, section 4.2).

        Example: ``ranked.precision(np.ones((1, len(ranked.objects)), np.int64), "101")``
        """
        step = max(1, _MOST_NUMBERS // max(1, len(self.image)))
        parts = [self._precision(times[start : start + step], recalls) for start in range(0, len(times), step)]
        return np.concatenate(parts, axis=1)

    def _precision(self, times: Int64, recalls: Recalls) -> Float64:
        objects = times @ self.objects
        share = times[:, self.image]
        found = np.empty((len(self.right), len(times)))
        for i, (right, wrong) in enumerate(zip(self.right, self.wrong, strict=True)):
            # a curve's best points are those of objects that are found: there precision rises
            at, mistakes = np.flatnonzero(right), np.flatnonzero(wrong)
            hits = np.cumsum(share[:, at], axis=1)
            misses = np.cumsum(np.pad(share[:, mistakes], ((0, 0), (1, 0))), axis=1)[:, np.searchsorted(mistakes, at)]
            precision = hits / np.maximum(hits + misses, 1)
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            recall = hits / np.maximum(objects, 1)[:, None]
            if recalls == "all":
                width = np.diff(recall, axis=1, prepend=0)
            else:
                thresholds = _THRESHOLDS[recalls]
                reached = np.searchsorted(thresholds, recall, side="right")
                width = np.diff(reached, axis=1, prepend=0) / len(thresholds)
            found[i] = 100 * (best * width).sum(axis=1)
        found[:, objects == 0] = np.nan
        return found


def mean_precision(ranked: Sequence[Ranked], times: Int64, recalls: Recalls) -> tuple[Float64, Float64]:
    """Return the mean over classes with objects in each sample, float64 [S]: of all IoUs, and of the first; else -1.

    Example: ``mean_precision(classes, times_of(drawn), "101")[1]``
    """
    each = np.stack([one.precision(times, recalls) for one in ranked])  # [K, T, S]
    known = ~np.isnan(each[:, 0])
    count = np.maximum(known.sum(axis=0), 1)
    sums = np.where(np.isnan(each), 0, each).sum(axis=0) / count
    unknown = ~known.any(axis=0)
    return np.where(unknown, -1.0, sums.mean(axis=0)), np.where(unknown, -1.0, sums[0])


def drawn_times(images: int, samples: int, seed: int) -> Int64:
    """Return how often each of so many samples, drawn with replacement, has each image: int64 [samples, images].

    >>> drawn_times(4, 2, seed=0).sum(axis=1).tolist()
    [4, 4]
    """
    drawn = np.random.default_rng(seed).integers(0, images, (samples, images))
    return np.stack([np.bincount(row, minlength=images) for row in drawn])


def interval(values: Float64) -> tuple[float, float]:
    """Return 95 % of the samples' values, from their percentile 2.5 to 97.5.

    >>> interval(np.arange(1001.0))
    (25.0, 975.0)
    """
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
