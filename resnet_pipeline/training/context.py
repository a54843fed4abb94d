"""What the training loop needs to know about the process that it runs in.

The loop is the same in one plain process, under torchrun and under Ray Train; only the context differs
(``adapters.ray.train`` has Ray's).
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist

from resnet_pipeline.device import local_device
from resnet_pipeline.settings import torchrun
from resnet_pipeline.training.distributed import collective_timeout
from resnet_pipeline.training.metrics_log import Pace
from resnet_pipeline.training.stopping import stop_on_signals

_log = logging.getLogger(__name__)


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

    def show(self, step: int, pace: Pace) -> None:
        """Show how fast it goes to whoever watches the cluster; called at every log point, so it must be quick."""

    def should_stop(self) -> bool:
        """Return whether this process was asked to save and stop; called at every step, so it must be cheap."""

    def should_save(self) -> bool:
        """Return whether it was announced since the last call that this process will be ended soon.

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

    def show(self, step: int, pace: Pace) -> None:
        """Nobody watches."""

    def should_stop(self) -> bool:
        """Return what the caller's ``stop`` says."""
        return self.stop()

    def should_save(self) -> bool:
        """Return False: a plain process is told by a signal, and stops."""
        return False


@contextmanager
def torchrun_context() -> Iterator[LocalContext]:
    """Join the process group that torchrun's environment describes; a single process if there is none.

    SIGTERM (torchrun's, Slurm's and a spot machine's warning) and Ctrl-C ask the loop to save and stop at its next
    step, however often they come: Slurm and torchrun may both send them.

    Example: ``with torchrun_context() as context: train(run, dataset, context)``
    """
    world = torchrun().world_size
    device = local_device(torchrun().local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with stop_on_signals(loud=torchrun().rank == 0) as stop:
        if world == 1:
            yield LocalContext(device=device, stop=stop)
            return
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=collective_timeout())
        try:
            yield LocalContext(rank=dist.get_rank(), world_size=world, device=device, stop=stop)
        finally:
            dist.destroy_process_group()
            # DDP's cycles of references keep the group, and its threads, until Python finalises: one that drops a
            # tensor then aborts the process
            gc.collect()
