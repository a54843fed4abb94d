"""Errors against several right labels per image (Beyer et al., "Are we done with ImageNet?", 2020: ReaL)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.confusion import top_classes
from resnet_pipeline.evaluation.scores import Scores

RealLabels = dict[str, list[int]]
"""A sample's key, or its file name → the classes that are right for it; none if people saw no class in it."""


_VALIDATION = "ILSVRC2012_val_{:08d}.JPEG"  # the file names of ILSVRC's validation images, counted from 1


def read_real_labels(path: Path) -> RealLabels:
    """Read a JSON object of key → list of class numbers, or ReaL's own ``real.json``.

    That is a list with an entry for each of ILSVRC's validation images, in the order of their file names
    (google-research/reassessed-imagenet); class numbers are those of the sorted WordNet ids, as here. UserError names
    what is wrong with the file.

    Example: ``read_real_labels(Path("real.json"))``
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"labels {path} can't be read: {str(error).splitlines()[0]}") from None
    if isinstance(values, list):
        values = {_VALIDATION.format(number): labels for number, labels in enumerate(values, 1)}
    if not isinstance(values, dict):
        raise UserError(
            f"labels {path} must hold a JSON object of key → list of class numbers, or ReaL's list of lists"
        )
    for key, labels in values.items():
        if not isinstance(labels, list) or not all(type(label) is int and label >= 0 for label in labels):
            raise UserError(f"labels {path}: {key!r} must be a list of class numbers, not {labels!r}")
    return values


@dataclass(frozen=True, kw_only=True)
class RealError:
    """Top-1 error in percent, and how many images were counted: those that have at least one right label."""

    top1: float
    images: float


def real_error(scores: Scores, labels: RealLabels) -> RealError:
    """Return the error against several right labels per image.

    An answer is right if it is one of the image's labels. A key is looked up whole, then by its file name alone. Raises
    UserError for a sample that the labels don't know, and for a class that the scores don't have.

    Example: ``real_error(read_scores(path), read_real_labels(Path("real.json")))``
    """
    answers, classes = top_classes(scores.probabilities, 1)[:, 0], scores.probabilities.shape[1]
    right: list[bool] = []
    for key, answer in zip(scores.keys, answers, strict=True):
        found = labels.get(key, labels.get(key.rpartition("/")[2]))
        if found is None:
            raise UserError(f"the labels know nothing of sample {key} of split {scores.split!r}")
        if found and max(found) >= classes:
            raise UserError(f"the labels give {key} class {max(found)}, but the scores have {classes} classes")
        if found:
            right.append(int(answer) in found)
    return RealError(top1=100 * (1 - sum(right) / max(len(right), 1)), images=float(len(right)))


def agreement(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> float:
    """Return on how many of the samples, in percent, two networks' scores [N, C] give the same answer.

    >>> agreement(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.6, 0.4], [0.7, 0.3]]))
    50.0
    """
    same = top_classes(first, 1) == top_classes(second, 1)
    return 100 * float(same.mean()) if len(same) else 0.0
