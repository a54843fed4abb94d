"""What is set once in a training process, before the first step."""

from __future__ import annotations

import ctypes

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resnet_pipeline.config import Precision

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def prepare_device(device: torch.device, precision: Precision) -> None:
    """Set the switches of PyTorch and of the allocator: exact repetition on a CPU, cuDNN's search in bf16 on a GPU."""
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # on by default with the above, to show reads of uninitialised memory: a second writing of every tensor
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = precision == "bf16"


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed. Where there is no mallopt nothing happens.

    By default it returns each large tensor's memory to the kernel, which hands it out again page by page, zeroed: for
    a step of ResNet-50 more than a million page faults (docs/LOG.md has their cost). This concerns malloc's main
    arena: a thread of its own has another one, unless the process was started with MALLOC_ARENA_MAX=1.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 << 20)


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


def compile_network(model: nn.Module, device: torch.device) -> bool:
    """Compile a module in place, with CUDA graphs, and return True; False, with nothing done, on a CPU.

    A graph is made for each size of image. Each gradient gets memory of its own, which must be kept.
    """
    if device.type != "cuda":
        return False
    model.compile(mode="reduce-overhead", dynamic=False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return True
