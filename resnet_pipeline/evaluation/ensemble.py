"""Errors of one network or of several, from kept scores; no network runs here (the paper, section 3.4 and Table 5).

``probabilities`` averages the members' softmax, ``logits`` their log-probabilities. A logit is a log-probability plus a
constant per sample, which the softmax of the mean takes out again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.confusion import check_labelled, label_places
from resnet_pipeline.evaluation.scores import Scores, check_same_samples
from resnet_pipeline.evaluation.statistics import error_interval
from resnet_pipeline.records import INLINE

Combine = Literal["probabilities", "logits"]
Float64 = npt.NDArray[np.float64]
_LEAST = 2.0**-149  # the smallest positive float32: the logarithm of a probability that was rounded to zero
_ROWS = 256  # what is computed at once stays in the caches
_EM_STEPS = 500


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Top-1 and top-5 error in percent of ``images`` images."""

    top1: float
    top5: float
    images: int


@dataclass(frozen=True, kw_only=True)
class IntervalErrors:
    """Top-1 and top-5 error in percent, each with Wilson's 95 % interval."""

    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """On how many images something was tested, and its errors; None if their labels are not known.

    ``images`` is a whole number that ``--json`` has always written as ``364.0``.
    """

    images: float
    errors: IntervalErrors | None = field(default=None, metadata=INLINE)

    @classmethod
    def of(cls, scores: Scores) -> Measured:
        """Return the number of images of scores, and the errors if the labels are known."""
        return cls(images=float(len(scores.keys)), errors=interval_errors(scores) if scores.labelled else None)


def errors_of(scores: Scores) -> Errors:
    """Return top-1 and top-5 error; UserError if a label is not known.

    Example: ``errors_of(read_scores(path)).top1``
    """
    return _errors(label_places(scores.probabilities, scores.labels))


def interval_errors(scores: Scores) -> IntervalErrors:
    """Return top-1 and top-5 error with their intervals; UserError if a label is not known, or there is no image.

    Example: ``interval_errors(read_scores(path)).top1_interval``
    """
    places = label_places(scores.probabilities, scores.labels)
    errors = _errors(places)
    return IntervalErrors(
        top1=errors.top1,
        top1_interval=error_interval(places >= 1),
        top5=errors.top5,
        top5_interval=error_interval(places >= 5),
    )


def _errors(places: npt.NDArray[np.int64]) -> Errors:
    images = max(len(places), 1)
    return Errors(
        top1=100 * int(np.count_nonzero(places >= 1)) / images,
        top5=100 * int(np.count_nonzero(places >= 5)) / images,
        images=len(places),
    )


class Mean:
    """The weighted mean of members that come one after the other, so that one of them is in memory at a time.

    Example: ``average(read_scores(path) for path in paths)``
    """

    def __init__(self, combine: Combine = "probabilities") -> None:
        self._combine = combine
        self._members: list[Scores] = []  # without their probabilities
        self._total: npt.NDArray[np.float64] | None = None
        self._weight = 0.0

    def add(self, member: Scores, weight: float = 1.0) -> None:
        """Add a member; UserError if its dataset, split, samples or classes are not the first one's."""
        empty = np.empty((0, member.probabilities.shape[1]), dtype=np.float32)
        described = replace(member, probabilities=empty)
        if self._members:
            check_same_samples([self._members[0], described])
        self._members.append(described)
        if self._total is None:
            self._total = np.zeros(member.probabilities.shape, dtype=np.float64)
        for start in range(0, len(self._total), _ROWS):
            part = slice(start, start + _ROWS)
            self._total[part] += weight * _terms(member.probabilities[part], self._combine)
        self._weight += weight

    def scores(self) -> Scores:
        """Return the mean as scores, float32; UserError if there is no member."""
        if self._total is None:
            raise UserError("an ensemble needs at least one member")
        mean = np.empty(self._total.shape, dtype=np.float32)
        for start in range(0, len(mean), _ROWS):
            part = slice(start, start + _ROWS)
            mean[part] = _probabilities(self._total[part] / self._weight, self._combine)
        return replace(
            self._members[0],
            model=" + ".join(m.model for m in self._members),
            weights_sha256="",
            seconds=sum(m.seconds for m in self._members),
            probabilities=mean,
        )


def average(
    members: Iterable[Scores], *, weights: Sequence[float] | None = None, combine: Combine = "probabilities"
) -> Scores:
    """Return the mean of the members, which may be read one after the other; ``weights`` are equal by default.

    Raises UserError if weights are negative, all zero, or not one per member, and naming the first member whose
    dataset, split, samples or classes are not the first one's.

    Example: ``errors_of(average(read_scores(file) for file in files)).top1``
    """
    if weights is not None and not (all(w >= 0 for w in weights) and sum(weights) > 0):
        raise UserError(f"weights must be at least 0 and not all 0, not {list(weights)}")
    mean, count = Mean(combine), 0
    for count, member in enumerate(members, 1):
        if weights is not None and count > len(weights):
            break
        mean.add(member, 1.0 if weights is None else weights[count - 1])
        del member  # before the next one is read
    if weights is not None and count != len(weights):
        raise UserError(f"{len(weights)} weights for another number of members")
    return mean.scores()


@dataclass(frozen=True, kw_only=True)
class MemberErrors:
    """The errors in percent of an ensemble with a member added, or without it; ``member`` is its number."""

    member: int
    top1: float
    top5: float


def greedy_selection(
    members: Sequence[Scores], *, combine: Combine = "probabilities", by: Literal["top1", "top5"] = "top5"
) -> list[MemberErrors]:
    """Take, one after the other, the member that lowers the ensemble's error most; the curve has a step per member.

    Ties fall to the other error, then to the earlier member. The curve is selected on the samples that it reports:
    its lowest point is optimistic.

    Example: ``[row.member for row in greedy_selection([read_scores(path) for path in paths])]``
    """
    check_same_samples(members)
    total = np.zeros(members[0].probabilities.shape, dtype=np.float64)
    left, steps = list(range(len(members))), list[MemberErrors]()
    first, second = (0, 1) if by == "top1" else (1, 0)
    while left:
        found = {i: _errors_with(total, members[i], combine, members[0].labels) for i in left}
        best = min(left, key=lambda i: (found[i][first], found[i][second], i))
        for start in range(0, len(total), _ROWS):
            part = slice(start, start + _ROWS)
            total[part] += _terms(members[best].probabilities[part], combine)
        steps.append(MemberErrors(member=best, top1=found[best][0], top5=found[best][1]))
        left.remove(best)
    return steps


def leave_one_out(members: Sequence[Scores], *, combine: Combine = "probabilities") -> list[MemberErrors]:
    """Return the errors of the ensemble without each member; UserError if it has only one.

    Example: ``[row.top1 for row in leave_one_out([read_scores(path) for path in paths])]``
    """
    check_same_samples(members)
    if len(members) < 2:
        raise UserError("leaving a member out needs at least two members")
    total = np.zeros(members[0].probabilities.shape, dtype=np.float64)
    for member in members:
        for start in range(0, len(total), _ROWS):
            part = slice(start, start + _ROWS)
            total[part] += _terms(member.probabilities[part], combine)
    without = (_errors_with(total, member, combine, members[0].labels, sign=-1) for member in members)
    return [MemberErrors(member=i, top1=top1, top5=top5) for i, (top1, top5) in enumerate(without)]


def halves(samples: int, *, seed: int = 0) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split the sample numbers at random into a half to fit on and a half to report on, each ascending.

    UserError for less than two.

    >>> [half.tolist() for half in halves(6)]
    [[2, 3, 5], [0, 1, 4]]
    """
    if samples < 2:
        raise UserError(f"weights are fitted on one half of the images and tested on the other: {samples} is too few")
    order = np.random.default_rng(seed).permutation(samples)
    return np.sort(order[: samples // 2]), np.sort(order[samples // 2 :])


def rows_of(scores: Scores, rows: npt.NDArray[np.int64]) -> Scores:
    """Return the scores of some samples."""
    return replace(
        scores,
        keys=[scores.keys[i] for i in rows],
        labels=scores.labels[rows],
        probabilities=scores.probabilities[rows],
    )


def fit_weights(members: Sequence[Scores], *, combine: Combine = "probabilities") -> list[float]:
    """Return weights ≥ 0 with sum 1 that minimise the mean negative log-likelihood of the labels.

    For ``probabilities`` this is a mixture, fitted by expectation maximisation; for ``logits`` by L-BFGS.
    Both losses are convex in the weights. Report on other samples than these: see `halves`.

    Example: ``fit_weights([read_scores(path) for path in paths])``
    """
    check_same_samples(members)
    check_labelled(members[0].labels)
    if combine == "logits":
        return _fit_logits(members)
    labels = members[0].labels[:, None]
    own = np.stack([np.take_along_axis(m.probabilities, labels, 1)[:, 0] for m in members]).astype(np.float64)
    own = np.maximum(own, _LEAST)
    weights = np.full(len(members), 1 / len(members))
    for _ in range(_EM_STEPS):
        weights *= (own / (weights @ own)).mean(1)
    return [float(w) for w in weights / weights.sum()]


def _fit_logits(members: Sequence[Scores]) -> list[float]:
    """Minimise over z, the weights being softmax(z), so that they stay positive with sum 1."""
    labels, samples = members[0].labels, len(members[0].labels)
    z = torch.zeros(len(members), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        weights = torch.softmax(z.detach(), 0)
        value, gradient = 0.0, np.zeros(len(members))
        for start in range(0, samples, _ROWS):
            part = slice(start, start + _ROWS)
            logs = np.stack([_terms(m.probabilities[part], "logits") for m in members])
            mean = _probabilities(np.tensordot(weights.numpy(), logs, 1), "logits")
            label = labels[part, None]
            value -= float(np.log(np.maximum(np.take_along_axis(mean, label, 1), _LEAST)).sum())
            gradient += (mean * logs).sum((1, 2)) - np.take_along_axis(logs, label[None], 2).sum((1, 2))
        by_weight = torch.from_numpy(gradient / samples)
        z.grad = weights * (by_weight - weights @ by_weight)
        return torch.tensor(value / samples, dtype=torch.float64)

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return [float(w) for w in torch.softmax(z.detach(), 0)]


def _terms(probabilities: npt.NDArray[np.floating], combine: Combine) -> Float64:
    values: Float64 = np.array(probabilities, dtype=np.float64)
    if combine == "logits":
        np.log(np.maximum(values, _LEAST), out=values)
    return values


def _probabilities(mean: Float64, combine: Combine) -> Float64:
    if combine == "probabilities":
        return mean
    powers: Float64 = np.exp(mean - mean.max(1, keepdims=True))
    powers /= powers.sum(1, keepdims=True)
    return powers


def _errors_with(
    total: Float64, member: Scores, combine: Combine, labels: npt.NDArray[np.int64], *, sign: int = 1
) -> tuple[float, float]:
    """Return top-1 and top-5 error of a sum of members with one more, or one fewer; a sum's order is its mean's."""
    wrong1 = wrong5 = 0
    for start in range(0, len(labels), _ROWS):
        part = slice(start, start + _ROWS)
        places = label_places(total[part] + sign * _terms(member.probabilities[part], combine), labels[part])
        wrong1 += int(np.count_nonzero(places >= 1))
        wrong5 += int(np.count_nonzero(places >= 5))
    return 100 * wrong1 / len(labels), 100 * wrong5 / len(labels)
