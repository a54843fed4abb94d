"""Batch-norm statistics across ranks, and their true averages after training.

In training each rank keeps moving averages of its own micro-batches; they never enter the gradient. Evaluation in
mid-training uses their mean over ranks. After training the statistics are "the average, not moving average, computed
on a sufficiently large training batch" (the authors' release notes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from resnet_pipeline.training.distributed import all_gather, all_reduce_sum

B = TypeVar("B")
_BatchNorm = nn.modules.batchnorm._BatchNorm


def moving_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norm layers whose statistics are not frozen: those of frozen ones never change.

    Example: ``bool(moving_norms(network))``
    """
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.momentum != 0]


def _statistics(model: nn.Module) -> list[torch.Tensor]:
    return [
        tensor
        for module in moving_norms(model)
        for tensor in (module.running_mean, module.running_var)
        if tensor is not None
    ]


def flatten_statistics(model: nn.Module) -> torch.Tensor:
    """Return all running means and variances that may move as one float vector [K]; empty if there are none."""
    statistics = _statistics(model)
    return torch.cat([s.detach().flatten() for s in statistics]) if statistics else torch.zeros(0)


def load_statistics(model: nn.Module, flat: torch.Tensor) -> None:
    """Set all running means and variances from a vector [K] that `flatten_statistics` made."""
    statistics = _statistics(model)
    with torch.no_grad():
        for target, values in zip(statistics, torch.split(flat, [s.numel() for s in statistics]), strict=True):
            target.copy_(values.view_as(target))


def gather_statistics(model: nn.Module, world_size: int) -> torch.Tensor:
    """Return every rank's statistics [world_size, K]."""
    return all_gather(flatten_statistics(model), world_size)


@contextmanager
def averaged_statistics(model: nn.Module, world_size: int) -> Iterator[None]:
    """Inside, the model has the mean of all ranks' statistics; afterwards its own again.

    Example: ``with averaged_statistics(network, world_size): task.validate(network, alive)``
    """
    own = flatten_statistics(model).clone()
    load_statistics(model, gather_statistics(model, world_size).mean(0))
    try:
        yield
    finally:
        load_statistics(model, own)


def recompute_statistics(
    model: nn.Module, batches: Iterable[B], forward: Callable[[nn.Module, B], object], device: torch.device
) -> None:
    """Replace the running statistics by the plain average over micro-batches, each rank computing its share.

    ``batches`` are this rank's, and ``forward`` passes one through the model. Means are averages of the micro-batches'
    means, variances of their unbiased variances; ranks count by their number of micro-batches.

    Example: ``recompute_statistics(network, batches, task.forward, device)``
    """
    layers = moving_norms(model)
    momenta = [m.momentum for m in layers]
    was_training = model.training
    model.train()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # PyTorch's cumulative average
    try:
        count = 0
        with torch.no_grad():
            for batch in batches:
                forward(model, batch)
                count += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(was_training)
    total = all_reduce_sum(torch.tensor([float(count)], device=device))
    load_statistics(model, all_reduce_sum(flatten_statistics(model) * count) / total)
