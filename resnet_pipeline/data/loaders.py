"""Batches of a staged dataset, decoded by DALI or, slow and obvious, by Pillow and torchvision.

What a batch holds is planned first (``order``, ``crops``); the two executors only carry plans out. The number of
decoding threads, and of batches ahead, changes the speed alone. An argument says it, else the environment variables
RESNET_PIPELINE_LOADER_THREADS and RESNET_PIPELINE_LOADER_PREFETCH; by default it is one thread per CPU that PyTorch
uses, and two batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, Required, TypedDict, TypeVar, Unpack

import numpy as np
import torch

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.data.crops import Plan, ViewPlan, WholePlan, plan_crops, plan_views, resized_sizes
from resnet_pipeline.data.dataset import Dataset, Split
from resnet_pipeline.data.decoding_check import way_for
from resnet_pipeline.data.order import Blocks, Int64, micro_batch_positions, samples_at, stretches, stretches_along
from resnet_pipeline.data.shard_reader import Reached
from resnet_pipeline.errors import UserError
from resnet_pipeline.settings import settings

Backend = Literal["auto", "dali", "torch"]
ViewKind = Literal["center", "10-crop"]
T = TypeVar("T")
P = TypeVar("P")

_DECODED_PIXELS = 2**27  # of a batch of test images, before they are resized: 400 MB, and some batches are under way


@dataclass(frozen=True)
class Batch:
    """N training images uint8 [N, H, W, 3], labels int64 [N], sample numbers int64 [N], colour offsets float [N, 3]."""

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    color: torch.Tensor


@dataclass(frozen=True)
class ViewBatch:
    """V views of N test images: uint8 [N, V, H, W, 3], labels int64 [N], sample numbers int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor


class Executor(Protocol):
    """Carries plans out: images uint8 [N, H, W, 3] for crops, [N, V, H, W, 3] for views, in the plans' order."""

    def crops(self, plans: Iterator[Plan]) -> Iterator[tuple[Plan, torch.Tensor]]:
        """Yield each plan with its images."""

    def views(self, plans: Iterator[ViewPlan]) -> Iterator[tuple[ViewPlan, torch.Tensor]]:
        """Yield each plan with its images."""

    def whole_images(self, plans: Iterator[WholePlan]) -> Iterator[tuple[WholePlan, list[list[torch.Tensor]]]]:
        """Yield each plan with its images uint8 [h, w, 3]: a list per size, of one image per sample."""


class Stream(TypedDict, total=False):
    """Which micro-batches of the endless stream of training samples a rank gets, and how they are decoded.

    A step of ``batch`` samples has batch / micro_batch micro-batches; micro-batch m is rank (m mod ``world``)'s. There
    are ``steps`` steps from ``start_step`` on, 0 by default. ``block_shards`` shuffles within blocks of so many shards
    (``order.Blocks``); None shuffles the whole epoch. ``threads`` and ``prefetch`` are as the module says.
    """

    seed: Required[int]
    batch: Required[int]
    micro_batch: Required[int]
    steps: Required[int]
    start_step: int
    rank: int
    world: int
    block_shards: int | None
    device: torch.device | None
    threads: int | None
    prefetch: int | None
    backend: Backend


def train_batches(
    dataset: Dataset, *, split: str = "train", augment: AugmentConfig, **stream: Unpack[Stream]
) -> Loader[Batch]:
    """Return this rank's micro-batches of the steps from ``start_step`` on, in order.

    Which they are, `Stream` says. The content of each is a function of (seed, position) alone. Shards of a bucket are
    fetched ahead of their use. Raises UserError if the cache is too small.

    Example::

        train_batches(dataset, augment=get_recipe("digits/resnet8").augment, seed=0, batch=64, micro_batch=32, steps=2)
    """
    samples = dataset.splits[split]

    def made(plan: Plan, images: torch.Tensor, positions: Int64) -> Batch:
        labels = torch.from_numpy(samples.labels[plan.index])
        return Batch(images, labels, torch.from_numpy(plan.index), torch.from_numpy(plan.color))

    return crop_batches(dataset, samples, made, augment=augment, **stream)


def crop_batches(
    dataset: Dataset,
    samples: Split,
    made: Callable[[Plan, torch.Tensor, Int64], T],
    *,
    augment: AugmentConfig,
    **stream: Unpack[Stream],
) -> Loader[T]:
    """Return this rank's micro-batches of the steps from ``start_step`` on, as `train_batches`, as ``made`` makes them.

    It takes a plan of crops, their images uint8 [N, H, W, 3], and their positions int64 [N] in the stream of the
    ``samples``, a part of the dataset.

    Example: ``crop_batches(dataset, samples, made, augment=augment, seed=0, batch=256, micro_batch=32, steps=9)``
    """
    if len(samples) == 0:
        raise UserError(f"dataset {dataset.name!r} has no images to train on")

    def planned(positions: Int64, blocks: Blocks | None) -> Plan:
        return crops_at(positions, dataset, samples, augment, seed=stream["seed"], blocks=blocks)

    def carried(executor: Executor, plans: Iterator[Plan], positions: Iterator[Int64]) -> Iterator[T]:
        for (plan, images), own in zip(executor.crops(plans), positions, strict=False):
            yield made(plan, images, own)

    fill = dataset.statistics.mean_rgb if augment.kind == "pad-crop" else None
    return stream_batches(samples, planned, carried, fill=fill, **stream)


def stream_batches(
    samples: Split,
    planned: Callable[[Int64, Blocks | None], P],
    carried: Callable[[Executor, Iterator[P], Iterator[Int64]], Iterator[T]],
    *,
    fill: Any = None,
    **stream: Unpack[Stream],
) -> Loader[T]:
    """Return what is ``carried`` out of the plans of this rank's micro-batches, whose shards are fetched ahead.

    ``planned`` makes a plan of the positions int64 [N] of a micro-batch in the stream of the samples and of the blocks
    that they are shuffled in. ``carried`` gets the plans, and the positions once more. ``fill`` is what the executor
    pads with.

    Example: ``stream_batches(samples, planned, carried, seed=0, batch=256, micro_batch=32, steps=9)``
    """
    seed, batch, micro_batch = stream["seed"], stream["batch"], stream["micro_batch"]
    start, stop = stream.get("start_step", 0), stream.get("start_step", 0) + stream["steps"]
    block_shards, count = stream.get("block_shards"), len(samples.shards)
    samples.files.require(min(count, 2 * block_shards) if block_shards else count)
    blocks = Blocks(samples.shard, block_shards or count)

    def of_rank() -> Iterator[Int64]:
        for step in range(start, stop):
            for micro in range(stream.get("rank", 0), batch // micro_batch, stream.get("world", 1)):
                yield micro_batch_positions(step, micro, batch=batch, micro_batch=micro_batch)

    def plans(reached: Reached) -> Iterator[P]:
        for positions in of_rank():
            reached(int(positions[0]))
            yield planned(positions, blocks if block_shards else None)

    def run(executor: Executor) -> Iterator[T]:
        ahead = stretches(start * batch, stop * batch, seed=seed, blocks=blocks)
        with samples.files.following(ahead) as reached:
            yield from carried(executor, plans(reached), of_rank())

    device, threads, prefetch = stream.get("device"), stream.get("threads"), stream.get("prefetch")
    backend = stream.get("backend", "auto")
    return Loader(lambda: executor_of(samples, micro_batch, device, threads, prefetch, backend, fill), run)


def crops_at(
    positions: Int64,
    dataset: Dataset,
    samples: Split,
    augment: AugmentConfig,
    *,
    seed: int,
    blocks: Blocks | None = None,
) -> Plan:
    """Return the plan of the training crops at positions int64 [N] of the stream of a split's samples."""
    index = samples_at(positions, samples=len(samples), seed=seed, blocks=blocks)
    return plan_crops(
        augment,
        seed=seed,
        positions=positions,
        index=index,
        width=samples.width[index],
        height=samples.height[index],
        color_basis=dataset.statistics.color_basis,
    )


def view_batches(
    dataset: Dataset,
    *,
    split: str,
    views: ViewKind,
    resize: int,
    crop: int,
    batch_size: int,
    indices: Int64 | None = None,
    rank: int = 0,
    world: int = 1,
    device: torch.device | None = None,
    threads: int | None = None,
    prefetch: int | None = None,
    backend: Backend = "auto",
) -> Loader[ViewBatch]:
    """Return views of this rank's samples, each sample exactly once; the last batch is smaller, nothing is padded.

    ``indices`` are the samples to look at, all by default; rank r takes every world-th of them from r on. They are read
    in the order of the shards.

    Example: ``view_batches(dataset, split="val", views="center", resize=256, crop=224, batch_size=32)``
    """
    samples = dataset.splits[split]
    chosen = (np.arange(len(samples), dtype=np.int64) if indices is None else indices)[rank::world]
    resized = resized_sizes(samples.width[chosen], samples.height[chosen], resize)
    decoded = decoded_pixels(samples, chosen)

    ahead = stretches_along(samples.shard[chosen], 1)

    def plans(reached: Reached) -> Iterator[ViewPlan]:
        for rows in slices(len(chosen), batch_size, decoded):
            reached(int(rows[0]))
            yield plan_views(views, index=chosen[rows], resized=resized[rows], crop=crop)

    def run(executor: Executor) -> Iterator[ViewBatch]:
        with samples.files.following(ahead) as reached:
            for plan, images in executor.views(plans(reached)):
                yield ViewBatch(images, torch.from_numpy(samples.labels[plan.index]), torch.from_numpy(plan.index))

    return Loader(lambda: executor_of(samples, batch_size, device, threads, prefetch, backend, None), run)


class Loader(Generic[T]):
    """An iterator of batches that releases its decoder when it is closed; a context manager."""

    def __init__(self, make: Callable[[], Executor], run: Callable[[Executor], Iterator[T]]) -> None:
        self._make, self._run = make, run
        self._batches: Iterator[T] | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._batches is None:
            self._batches = self._run(self._make())
        return next(self._batches)

    def __enter__(self) -> Loader[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release threads and memory; no more batches come."""
        self._batches = iter(())  # the generators that hold them end when they are dropped


def executor_of(
    samples: Split,
    most: int,
    device: torch.device | None,
    threads: int | None,
    prefetch: int | None,
    backend: Backend,
    fill: Any,
) -> Executor:
    """Return the executor of a backend for batches of at most ``most`` samples; UserError if its library is missing."""
    device = device or torch.device("cpu")
    threads = threads or settings().loader_threads or torch.get_num_threads()
    prefetch = prefetch or settings().loader_prefetch or 2
    if backend != "torch":
        try:
            from resnet_pipeline.data.dali_decoder import DaliExecutor

            return DaliExecutor(samples, most, device, threads, prefetch, fill, way_for(str(device)))
        except ImportError as error:
            if backend == "dali":
                raise UserError(f"DALI can't be imported ({error}); install nvidia-dali-cuda130") from None
    from resnet_pipeline.data.torch_decoder import TorchExecutor

    return TorchExecutor(samples, device, fill)


def decoded_pixels(samples: Split, indices: Int64) -> Int64:
    """Return the pixels int64 [N] that each sample has when it is decoded."""
    pixels: Int64 = samples.width[indices].astype(np.int64) * samples.height[indices]
    return pixels


def slices(samples: int, batch_size: int, pixels: Int64) -> Iterator[Int64]:
    """Yield the rows 0 to ``samples`` in order, at most ``batch_size`` at a time.

    Of images of many ``pixels`` int64 [samples] fewer, since those of a slice are in memory at once, each whole.

    >>> [rows.tolist() for rows in slices(5, 2, np.array([576, 576, 576, 2**27, 2**28]))]
    [[0, 1], [2], [3], [4]]
    """
    start = 0
    while start < samples:
        fitting = np.searchsorted(np.cumsum(pixels[start : start + batch_size]), _DECODED_PIXELS, side="right")
        stop = min(start + max(1, int(fitting)), samples)
        yield np.arange(start, stop, dtype=np.int64)
        start = stop
