"""What a training step takes of memory, and a run of the disk: found before they are used up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn

from resnet_pipeline.config import Precision, RunConfig
from resnet_pipeline.errors import UserError
from resnet_pipeline.models import Classifier
from resnet_pipeline.models.recompute import Stage
from resnet_pipeline.training.step import autocast

_IMAGES = 2  # of the step that is tried; batch norm needs more than one value of each channel
_KEPT_CHECKPOINTS = 4  # the newest two, the best, and the one that is being written
# what a step takes beside what was counted, scratch memory of the convolutions above all (docs/LOG.md)
_MARGIN, _MARGIN_BYTES = 1.3, 300_000_000


class NoRoomError(UserError):
    """A step or a run would not fit into the memory or on the disk; the text says what would."""


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """The bytes that a training step takes on its device.

    ``fixed``: weights, gradients, momentum, the weights' average, and a checkpoint's copy. ``of_an_image``: the
    activations that the backward pass needs, and the largest gradient of one.
    """

    fixed: int
    of_an_image: int

    def total(self, micro_batch: int) -> int:
        """Return the bytes of a step with micro-batches of so many images, with room for what was not counted."""
        return int(_MARGIN * (self.fixed + micro_batch * self.of_an_image)) + _MARGIN_BYTES


def step_memory(network: Classifier, config: RunConfig, precision: Precision = "float32") -> StepMemory:
    """Try a forward pass of two images at the largest training crop, where the network is, and count what it keeps.

    The network is the same afterwards, batch norm's running statistics too.

    Example: ``step_memory(network, get_recipe("imagenet/resnet50")).total(32)``
    """
    parameters = _bytes(network.parameters())
    copies = 3 + 2 * (1 + (config.optim.ema > 0))  # weights, gradient, momentum; average; and a checkpoint of these
    weights = {tensor.untyped_storage().data_ptr() for tensor in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = next(network.parameters()).device
    images = torch.zeros(_IMAGES, config.augment.crop, config.augment.crop, 3, dtype=torch.uint8, device=device)
    with _unchanged(network), torch.enable_grad(), autocast(device, precision):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = network(images)
        total, largest = sum(kept.values()), max(kept.values(), default=0)
        del outputs
    # a block that is computed again holds its activations meanwhile
    again = 3 * largest if any(stage.segment for stage in network.modules() if isinstance(stage, Stage)) else 0
    return StepMemory(fixed=copies * parameters, of_an_image=(total + largest + again) // _IMAGES)


def free_memory(processes: int) -> int:
    """Return the bytes of memory that each of ``processes`` on this machine may still take.

    What the kernel allows a container counts.

    Example: ``free_memory(2)``
    """
    return min([int(psutil.virtual_memory().available), *_container_limits()]) // processes


def check_memory(network: nn.Module, config: RunConfig, precision: Precision, processes: int) -> None:
    """Raise NoRoomError, which says what would fit, if a step would not fit into the memory of a CPU's machine.

    There a process that takes too much is killed without a word. A GPU's first step says so itself: `explained`. Of
    networks that are no `Classifier` nothing is known before.

    Example: ``check_memory(network, config, "float32", processes=2)``
    """
    if next(network.parameters()).device.type != "cpu" or not isinstance(network, Classifier):
        return
    memory, free = step_memory(network, config, precision), free_memory(processes)
    if memory.total(config.micro_batch) > free:
        raise NoRoomError(
            f"a step of {config.recipe} takes some {gigabytes(memory.total(config.micro_batch))} for micro-batches of "
            f"{config.micro_batch} images, and {gigabytes(free)} are free for each process; "
            f"{what_would_fit(config, memory, free)}"
        )


def explained(error: RuntimeError, config: RunConfig) -> NoRoomError | None:
    """Return what to say of an error that is a lack of memory, None for another one.

    Example: ``explained(torch.OutOfMemoryError("CUDA out of memory…"), config)``
    """
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        return None
    return NoRoomError(
        f"out of memory in a step of {config.recipe} with micro-batches of {config.micro_batch} images; "
        f"{what_would_fit(config)}"
    )


def what_would_fit(config: RunConfig, memory: StepMemory | None = None, free: int = 0) -> str:
    """Return a sentence on what to change so that a step fits, into ``free`` bytes if its ``memory`` is known."""
    ways = []
    if not config.model.checkpointing:
        ways.append("--set model.checkpointing=1 takes much less and ends with the same weights")
    smaller = [m for m in range(1, config.micro_batch) if config.batch % m == 0]
    fits = [m for m in smaller if memory is None or memory.total(m) <= free]
    if fits:
        ways.append(f"--set micro_batch={fits[-1]} {'would fit' if memory else 'takes less'}, but changes batch norm")
    return "; ".join(ways) or "it takes a machine with more memory, fewer workers on it, or a smaller network"


def disk_bytes(config: RunConfig, *, weights: int) -> int:
    """Return the bytes that a run's checkpoints and weights take on the disk, MLflow's copies included.

    ``weights`` are those of the network's parameters.

    Example: ``disk_bytes(config, weights=weight_bytes(config, classes=1000))``
    """
    checkpoint = (2 + (config.optim.ema > 0)) * weights
    initial = weights * (config.model.initial_weights is not None)
    # MLflow keeps the last checkpoint, and the registered version has the weights
    return _KEPT_CHECKPOINTS * checkpoint + weights + initial + (checkpoint + weights)


def check_disk(folder: Path, needed: int) -> None:
    """Raise NoRoomError if a folder's disk has no room for so many bytes beside what the folder has already.

    Example: ``check_disk(run.path, disk_bytes(config, weights=240_000_000))``
    """
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if needed - there > free:
        raise NoRoomError(
            f"{folder} needs some {gigabytes(needed)} for checkpoints and weights, and its disk has {gigabytes(free)} "
            "free; make room, or choose another --root"
        )


def _bytes(tensors: Iterator[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gigabytes(number: int) -> str:
    """Return a number of bytes as it is shown.

    >>> gigabytes(3_210_000_000), gigabytes(21_000_000)
    ('3.2 GB', '21 MB')
    """
    return f"{number / 1e9:,.1f} GB" if number >= 10**8 else f"{number / 1e6:,.0f} MB"


@contextmanager
def _unchanged(network: nn.Module) -> Iterator[None]:
    """Let the network train inside, in one thread; its mode and its buffers are as before afterwards.

    For two images a second thread would wait for the first, spinning beside whatever else the machine does.
    """
    training, buffers = network.training, {name: buffer.clone() for name, buffer in network.named_buffers()}
    threads = torch.get_num_threads()
    network.train()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        network.train(training)
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(buffers[name])


def _container_limits() -> list[int]:
    """Return what each of the kernel's limits on this process's group (cgroup, versions 2 and 1) leaves free."""
    found = []
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return found
