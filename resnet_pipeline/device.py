"""The device of this process, and the switches of PyTorch and malloc that are set once, before the first step."""

from __future__ import annotations

import ctypes

import torch

from resnet_pipeline.config import Precision

EMULATION = "convolutions and matrix products take 11 to 41 times as long as in float32"
"""What bf16 costs on a processor without it, measured with AVX2's instructions alone (docs/LOG.md)."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h


def local_device(local_rank: int = 0) -> torch.device:
    """Return this process's GPU if there is one, else the CPU.

    Example: ``local_device().type``
    """
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def chosen_precision(wanted: Precision, device: torch.device) -> Precision:
    """Return what ``auto`` and ``tf32`` mean on a device; other precisions are kept.

    ``auto`` is bf16 if the hardware has it, else float32: a processor without bf16 emulates it, which is slow
    (EMULATION). ``tf32`` is float32 on anything but a GPU.

    >>> chosen_precision("float32", torch.device("cpu"))
    'float32'
    """
    if wanted == "auto":
        return "bf16" if has_bf16(device) else "float32"
    return "float32" if wanted == "tf32" and device.type != "cuda" else wanted


def has_bf16(device: torch.device) -> bool:
    """Return whether a GPU, or this machine's processor (AVX-512's or AMX's instructions), computes in bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(bool(has) for name, has in capabilities.items() if name.endswith("bf16"))


def prepare_device(device: torch.device, precision: Precision) -> None:
    """Set the switches of PyTorch and of the allocator: exact repetition on a CPU, cuDNN's search in bf16 on a GPU."""
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # on by default with the above, to show reads of uninitialised memory: a second writing of every tensor
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        keep_freed_memory()
    else:
        torch.backends.cudnn.benchmark = precision == "bf16"
        allow_tf32(precision == "tf32")


def allow_tf32(allowed: bool) -> None:
    """Say whether a GPU may round what it multiplies in float32 to TF32; by default PyTorch does so in convolutions."""
    kind = "tf32" if allowed else "ieee"
    torch.backends.cudnn.conv.fp32_precision = kind  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = kind


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed. Without mallopt nothing happens.

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
