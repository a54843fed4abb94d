"""What the processes of a run do together: gradients, collectives, notices, and how long one waits for another.

The collectives are torch.distributed's if a process group exists and no-ops in a single process.
"""

from __future__ import annotations

from datetime import timedelta
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resnet_pipeline.settings import settings


def collective_timeout() -> timedelta:
    """Return how long a collective may take before the attempt ends: RESNET_PIPELINE_TIMEOUT seconds, else 600."""
    return timedelta(seconds=settings().timeout)


def distribute(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Return a model whose gradients are averaged over the processes; batch-norm statistics stay each rank's own."""
    return DistributedDataParallel(
        model,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        # DDP rearranges its buckets after its first step unless parameters may be unused, and a ring of 3 or more ranks
        # adds in an order that depends on the place in a bucket: the first step after a resumption would differ in the
        # last bit. (PyTorch warns that none was unused; that is so.)
        find_unused_parameters=device.type == "cpu",
    )


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
    late. It runs over gloo, also if the gradients run over NCCL, and never waits for the device.
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

    def close(self) -> None:
        """Wait for the exchange that is under way, and give its group of processes back: a next run makes its own."""
        self.last()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over the ranks, in place.

    >>> all_reduce_sum(torch.ones(2)).tolist()
    [1.0, 1.0]
    """
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
    """Return rank 0's value of a small picklable object on every rank.

    >>> from_rank_zero("a run", 1)
    'a run'
    """
    if world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
