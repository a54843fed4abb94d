"""What the training loop needs to know of the process that it runs in.

The loop is the same in one plain process, under torchrun and under Ray Train; only the context differs
(``adapters.ray_train`` has Ray's). The collectives are torch.distributed's where a process group exists and no-ops
in a single process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist


class Context(Protocol):
    """The members that every launcher provides."""

    @property
    def rank(self) -> int:
        """The number of this process among ``world_size``."""

    @property
    def world_size(self) -> int:
        """Number of training processes."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Tell the launcher about progress; called equally often on every rank."""

    def should_stop(self) -> bool:
        """Return whether this process was asked to stop (a signal, a pre-emption notice)."""


@dataclass(frozen=True, kw_only=True)
class LocalContext:
    """A plain process, or one of several that torchrun started."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    stop: Callable[[], bool] = lambda: False

    def report(self, metrics: Mapping[str, float]) -> None:
        """Nobody to tell: the metrics file has it."""

    def should_stop(self) -> bool:
        """Return what the caller's ``stop`` says."""
        return self.stop()


def local_device(local_rank: int = 0) -> torch.device:
    """Return this process's GPU where there is one, else the CPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


@contextmanager
def torchrun_context() -> Iterator[LocalContext]:
    """Join the process group that torchrun's environment describes; a single process where there is none."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = local_device(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        yield LocalContext(device=device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    try:
        yield LocalContext(rank=dist.get_rank(), world_size=world, device=device)
    finally:
        dist.destroy_process_group()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the ranks, in place."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_gather(tensor: torch.Tensor, world_size: int) -> torch.Tensor:
    """Return [world_size, …], every rank's tensor of the same shape."""
    if world_size == 1:
        return tensor.unsqueeze(0)
    parts = [torch.empty_like(tensor) for _ in range(world_size)]
    dist.all_gather(parts, tensor)
    return torch.stack(parts)


def from_rank_zero(value: Any, world_size: int) -> Any:
    """Return rank 0's value of a small picklable object on every rank."""
    if world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
