"""The device of this process, and the switches of PyTorch and malloc that are set once, before the first step."""

from __future__ import annotations

import ctypes

import torch

from resnet_pipeline.config import Precision

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def local_device(local_rank: int = 0) -> torch.device:
    """Return this process's GPU where there is one, else the CPU."""
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


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
