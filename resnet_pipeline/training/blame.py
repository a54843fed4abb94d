"""Whose samples made a step's loss or gradient non-finite.

The averaged gradient is bad on every rank, but the weights are those of before the step: each rank computes its
micro-batches again, each alone. The guard lets no update through.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from resnet_pipeline.config import Precision
from resnet_pipeline.training.distributed import all_gather_objects
from resnet_pipeline.training.step import FiniteGuard, RunningSums, train_step
from resnet_pipeline.training.tasks import B, Task

_RANKS, _NAMES = 3, 8  # that are named


def bad_samples(
    batches: Iterable[B],
    model: nn.Module,
    task: Task[B],
    optimizer: torch.optim.SGD,
    guard: FiniteGuard,
    *,
    step: int,
    precision: Precision,
) -> list[int]:
    """Return the sample numbers of this rank's micro-batches of a step whose gradient alone is not finite."""
    found: list[int] = []
    sums = RunningSums(task.counts, next(model.parameters()).device)  # not the run's
    for batch in batches:
        norm = train_step(model, task, optimizer, guard, sums, [batch], step=step, precision=precision)
        if not torch.isfinite(norm):
            found += batch.index.tolist()
    return found


def blame(names: Sequence[str], *, step: int, world_size: int) -> str:
    """Say on which ranks and samples a step was bad; called on every rank with the names of its own bad samples."""
    everyone = all_gather_objects(list(names), world_size)
    bad = [(rank, found) for rank, found in enumerate(everyone) if found]
    where = "; ".join(
        f"rank {rank}, samples {', '.join(found[:_NAMES])}{' …' if len(found) > _NAMES else ''}"
        for rank, found in bad[:_RANKS]
    )
    return (
        f"loss or gradient not finite at step {step} on {where or 'no rank alone, only in their sum'}"
        f"{f'; {len(bad) - _RANKS} more ranks' if len(bad) > _RANKS else ''}; the weights are those before it and the "
        "last checkpoint is good: look at the samples or try a lower optim.lr"
    )
