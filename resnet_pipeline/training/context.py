"""What the training loop needs to know of the process that it runs in.

The loop is the same in one plain process, under torchrun and under Ray Train; only the context differs
(``adapters.ray.train`` has Ray's). The collectives are torch.distributed's where a process group exists and no-ops
in a single process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from typing import Any, Protocol

import torch
import torch.distributed as dist

from resnet_pipeline.errors import UserError

TIMEOUT_VARIABLE = "RESNET_PIPELINE_TIMEOUT"


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
        """Return whether this process was asked to save and stop; called at every step, so it must be cheap."""

    def should_save(self) -> bool:
        """Return whether since the last call this process was announced to be ended soon.

        Called at the same step on every rank, every few seconds; every rank gets the same answer.
        """


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

    def should_save(self) -> bool:
        """Return False: a plain process is told by a signal, and stops."""
        return False


def local_device(local_rank: int = 0) -> torch.device:
    """Return this process's GPU where there is one, else the CPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def collective_timeout() -> timedelta:
    """Return how long a collective may take before the attempt ends: RESNET_PIPELINE_TIMEOUT seconds, else 600."""
    text = os.environ.get(TIMEOUT_VARIABLE, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise UserError(f"{TIMEOUT_VARIABLE} must be a number of seconds from 1 to 86400, not {text!r}")
    return timedelta(seconds=seconds)


@contextmanager
def torchrun_context() -> Iterator[LocalContext]:
    """Join the process group that torchrun's environment describes; a single process where there is none.

    SIGTERM (torchrun's, Slurm's and a spot machine's warning) asks the loop to save and stop at its next step.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = local_device(int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with stop_on_sigterm() as stop:
        if world == 1:
            yield LocalContext(device=device, stop=stop)
            return
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=collective_timeout())
        try:
            yield LocalContext(rank=dist.get_rank(), world_size=world, device=device, stop=stop)
        finally:
            dist.destroy_process_group()


@contextmanager
def stop_on_sigterm() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM came since; outside the main thread no signal can be caught."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.set())
    try:
        yield told.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


class Notice(IntEnum):
    """What a rank has to tell the others; the highest wins."""

    NONE = 0
    LOOK = 1
    """Time to ask the launcher for warnings, together."""
    STOP = 2
    """Save and stop."""


class Notices:
    """What any rank was told, known to all at the same step, without a step waiting for it.

    Each `exchange` starts an all-reduce beside the training and takes the result of the one before: at most one step
    late. It runs over gloo, also where the gradients run over NCCL, and never waits for the device.
    """

    def __init__(self, world_size: int) -> None:
        self._group: Any = None
        if world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=collective_timeout())
        self._under_way: tuple[torch.Tensor, Any] | None = None

    def exchange(self, own: Notice) -> Notice:
        """Take in this rank's notice; return the highest of all ranks at their last exchange (alone: this one)."""
        if self._group is None:
            return own
        agreed = self.last()
        value = torch.tensor([int(own)])
        self._under_way = value, dist.all_reduce(value, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def last(self) -> Notice:
        """Wait for the exchange that is under way and return what came of it."""
        if self._under_way is None:
            return Notice.NONE
        (value, work), self._under_way = self._under_way, None
        work.wait()
        return Notice(int(value))


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


def all_gather_objects(value: Any, world_size: int) -> list[Any]:
    """Return every rank's value of a small picklable object, by rank."""
    if world_size == 1:
        return [value]
    found: list[Any] = [None] * world_size
    dist.all_gather_object(found, value)
    return found


def from_rank_zero(value: Any, world_size: int) -> Any:
    """Return rank 0's value of a small picklable object on every rank."""
    if world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
