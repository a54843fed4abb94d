"""Ensembles and errors from kept scores; no network runs here (the paper, section 3.4 and Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.metrics import TopErrors
from resnet_pipeline.evaluation.scores import Scores


def errors_of(scores: Scores) -> dict[str, float]:
    """Return top-1 and top-5 error in percent and the number of images."""
    counts = TopErrors()
    counts.add(torch.as_tensor(scores.probabilities), torch.as_tensor(scores.labels))
    return counts.errors()


def average(members: Sequence[Scores]) -> Scores:
    """Return the mean of the members' probabilities.

    Raises UserError naming the first member whose dataset, split, samples or classes are not the first one's.
    """
    if not members:
        raise UserError("an ensemble needs at least one member")
    first = members[0]
    for member in members[1:]:
        for field in ("dataset_fingerprint", "split", "keys"):
            if getattr(member, field) != getattr(first, field):
                what = field.replace("_", " ")
                raise UserError(f"scores of {member.model} and {first.model} can't be averaged: their {what} differ")
        if member.probabilities.shape != first.probabilities.shape:
            raise UserError(
                f"scores of {member.model} have {member.probabilities.shape[1]} classes, "
                f"those of {first.model} {first.probabilities.shape[1]}"
            )
    total = np.zeros(first.probabilities.shape, dtype=np.float64)
    for member in members:
        total += member.probabilities
    return replace(
        first,
        model=" + ".join(m.model for m in members),
        weights_sha256="",
        seconds=sum(m.seconds for m in members),
        probabilities=(total / len(members)).astype(np.float32),
    )
