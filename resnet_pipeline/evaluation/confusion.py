"""Which classes a network gets wrong, and what it takes them for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resnet_pipeline.errors import UserError

Int64 = npt.NDArray[np.int64]
Labels = Int64
"""The true class of each sample int64 [N]; −1 if it is not known."""


@dataclass(frozen=True, kw_only=True)
class ClassErrors:
    """Per class int64 [C]: its images, and how many of them are wrong at 1 and at 5."""

    images: Int64
    wrong1: Int64
    wrong5: Int64

    @property
    def top1(self) -> npt.NDArray[np.float64]:
        """Top-1 error of each class in percent, float64 [C]; NaN for a class without images."""
        with np.errstate(invalid="ignore"):
            return 100 * self.wrong1 / self.images

    @property
    def top5(self) -> npt.NDArray[np.float64]:
        """Top-5 error of each class in percent, float64 [C]; NaN for a class without images."""
        with np.errstate(invalid="ignore"):
            return 100 * self.wrong5 / self.images


@dataclass(frozen=True)
class Confusion:
    """``count`` images of class ``label`` that the network takes for class ``predicted``."""

    label: int
    predicted: int
    count: int


def check_labelled(labels: Labels) -> None:
    """Raise UserError if a label is not known: an error can't be counted then."""
    unknown = int(np.count_nonzero(labels < 0))
    if unknown:
        raise UserError(
            f"{unknown:,} of {len(labels):,} images have no label, so they have no error; "
            "an unlabelled split serves the ILSVRC submission only (resnet-pipeline submission)"
        )


def top_classes(probabilities: npt.NDArray[np.floating], count: int) -> Int64:
    """Return the ``count`` best classes int64 [N, count] of scores [N, C], best first.

    Of equal scores the lower class stands first and NaN last, as in ``metrics.label_ranks``. There are at most C.

    >>> top_classes(np.array([[0.1, 0.7, 0.2]]), 2).tolist()
    [[1, 2]]
    """
    left = np.where(np.isnan(probabilities), -np.inf, probabilities)
    rows = np.arange(len(left))
    best = np.empty((len(left), min(count, left.shape[1])), dtype=np.int64)
    taken = np.zeros(left.shape, dtype=np.bool_)
    for place in range(best.shape[1]):
        best[:, place] = left.argmax(1)  # the first of equal ones
        # what is taken must stand behind a class of score −inf, too
        undone = taken[rows, best[:, place]]
        if undone.any():
            best[undone, place] = (~taken[undone]).argmax(1)
        taken[rows, best[:, place]] = True
        left[rows, best[:, place]] = -np.inf
    return best


def label_places(probabilities: npt.NDArray[np.floating], labels: Labels) -> Int64:
    """Return how many classes stand before the label, int64 [N]; ties and NaN as in ``metrics.label_ranks``.

    >>> label_places(np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]), np.array([2, 0])).tolist()
    [1, 0]
    """
    check_labelled(labels)
    places = np.empty(len(labels), dtype=np.int64)
    classes = np.arange(probabilities.shape[1])
    for start in range(0, len(labels), 4096):  # the comparisons of all at once would take as much memory as the scores
        part = slice(start, start + 4096)
        scores, label = probabilities[part], labels[part, None]
        own = np.take_along_axis(scores, label, 1)
        before = (scores > own) | ((scores == own) & (classes < label))
        places[part] = np.where(np.isnan(own[:, 0]), scores.shape[1], before.sum(1))
    return places


def class_errors(probabilities: npt.NDArray[np.floating], labels: Labels) -> ClassErrors:
    """Count each class's images and errors from scores [N, C]; UserError if a label is not known."""
    places, classes = label_places(probabilities, labels), probabilities.shape[1]
    return ClassErrors(
        images=np.bincount(labels, minlength=classes),
        wrong1=np.bincount(labels[places >= 1], minlength=classes),
        wrong5=np.bincount(labels[places >= 5], minlength=classes),
    )


def confusion_pairs(probabilities: npt.NDArray[np.floating], labels: Labels, *, most: int = 20) -> list[Confusion]:
    """Return the most frequent mistakes at 1, most frequent first, then by class numbers.

    >>> confusion_pairs(np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([0, 1]))
    [Confusion(label=0, predicted=1, count=1)]
    """
    check_labelled(labels)
    classes = probabilities.shape[1]
    predicted = top_classes(probabilities, 1)[:, 0]
    wrong = predicted != labels
    pairs, counts = np.unique(labels[wrong] * classes + predicted[wrong], return_counts=True)
    order = np.lexsort((pairs, -counts))[:most]
    return [
        Confusion(int(pair // classes), int(pair % classes), int(count))
        for pair, count in zip(pairs[order], counts[order], strict=True)
    ]
