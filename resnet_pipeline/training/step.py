"""One optimiser step: the mean gradient over micro-batches, whoever computes them, and the sums that are logged."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resnet_pipeline.config import Precision
from resnet_pipeline.training.distributed import all_reduce_sum
from resnet_pipeline.training.tasks import B, Task


class RunningSums:
    """A task's counts since the last log point, on the device; read back once per log point."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = names
        self._sums = torch.zeros(len(names), dtype=torch.float64, device=device)

    def add(self, counts: torch.Tensor) -> None:
        """Add a micro-batch's counts, float64 [K]."""
        self._sums += counts

    @property
    def state(self) -> torch.Tensor:
        """The sums of this rank, float64 [K], for `load`."""
        return self._sums.clone()

    def load(self, sums: torch.Tensor) -> None:
        """Continue with sums [K] that an earlier `state` returned."""
        self._sums.copy_(sums)

    def read(self) -> dict[str, float]:
        """Return the sums over all ranks by name, and start afresh."""
        sums = all_reduce_sum(self._sums.clone()).tolist()
        self._sums.zero_()
        return dict(zip(self._names, sums, strict=True))


class FiniteGuard:
    """Skips every update from the first non-finite gradient or loss on, without synchronising, until it is read.

    The fused optimiser skips its update on the device if ``found_inf`` is set.
    """

    def __init__(self, optimizer: torch.optim.SGD, device: torch.device) -> None:
        self._bad_step = torch.full((1,), -1.0, device=device)
        self._found_inf = torch.zeros(1, device=device)
        optimizer.found_inf = self._found_inf  # type: ignore[attr-defined]

    def observe(self, step: int, gradient_norm: torch.Tensor) -> None:
        """Take in the norm of a step's averaged gradient; NaN and infinity reach every rank through it."""
        first = ~torch.isfinite(gradient_norm) & (self._bad_step < 0)
        self._bad_step.copy_(torch.where(first, float(step), self._bad_step))
        self._found_inf.copy_((self._bad_step >= 0).float())

    def bad_step(self) -> int | None:
        """Return the first bad step, or None. Synchronises with the device."""
        step = int(self._bad_step.item())
        return step if step >= 0 else None


def train_step(
    model: nn.Module,
    task: Task[B],
    optimizer: torch.optim.SGD,
    guard: FiniteGuard,
    sums: RunningSums,
    micro_batches: Sequence[B],
    *,
    step: int,
    precision: Precision = "float32",
    keep_gradients: bool = False,
) -> torch.Tensor:
    """Run one step on this rank's micro-batches and return the norm of the gradient, a scalar on the device.

    Every rank has equally many micro-batches, so the mean over this rank's, averaged over ranks by
    DistributedDataParallel, is the mean over all. ``keep_gradients`` reuses the gradients' memory: CUDA graphs own
    what they return, so it must be added to memory that is not theirs.

    Example: ``train_step(model, task, optimizer, guard, sums, [next(batches)], step=0)``
    """
    device = next(model.parameters()).device
    optimizer.zero_grad(set_to_none=not keep_gradients)
    for i, batch in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        unsynchronised = isinstance(model, DistributedDataParallel) and not last
        with model.no_sync() if unsynchronised else contextlib.nullcontext():  # type: ignore[operator]
            if keep_gradients:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            with autocast(device, precision):
                outputs = task.forward(model, batch)
            loss, counts = task.loss(outputs, batch)
            (loss / len(micro_batches)).backward()  # type: ignore[no-untyped-call]
        sums.add(counts)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    guard.observe(step, norm)
    optimizer.step()
    return norm


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return a context in which convolutions and matrix products are computed in the run's precision.

    Example: ``with autocast(device, "bf16"): model(images)``
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def compile_network(model: nn.Module, device: torch.device) -> bool:
    """Compile a module in place, with CUDA graphs, and return True; False, with nothing done, on a CPU.

    A graph is made for each size of image. Each gradient gets memory of its own, which must be kept.
    """
    if device.type != "cuda":
        return False
    model.compile(mode="reduce-overhead", dynamic=False)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return True
