"""Whole images, decoded once each: at several sizes, for the fully convolutional protocol, or as they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from resnet_pipeline.data.crops import WholePlan, resized_sizes
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend, Executor, Loader, decoded_pixels, executor_of, slices
from resnet_pipeline.data.order import Int64, stretches_along
from resnet_pipeline.data.shard_reader import Reached


@dataclass(frozen=True)
class WholeBatch:
    """N images of one size: uint8 [N, h, w, 3], sample numbers int64 [N], and which of the shorter sides they have."""

    images: torch.Tensor
    index: torch.Tensor
    side: int


def by_shape(width: npt.NDArray[np.int32], height: npt.NDArray[np.int32]) -> Int64:
    """Return the order of images that puts those of one size beside each other, whatever their shorter side becomes.

    They stand by height over width, which decides the size then; equal ones by number.

    >>> by_shape(np.array([40, 20, 80], np.int32), np.array([20, 40, 40], np.int32)).tolist()
    [0, 2, 1]
    """
    return np.lexsort((np.arange(len(width)), height / width))


def whole_batches(
    dataset: Dataset,
    *,
    split: str,
    sides: Sequence[int],
    indices: Int64,
    batch_size: int = 16,
    batch_pixels: int,
    device: torch.device | None = None,
    threads: int | None = None,
    prefetch: int | None = None,
    backend: Backend = "auto",
) -> Loader[WholeBatch]:
    """Return every sample of ``indices`` once per shorter side, in batches of one size, nothing padded.

    The samples are decoded ``batch_size`` at a time in the order given, which should be that of `by_shape`: a batch
    ends when the size changes, or when one more image would make it more than ``batch_pixels`` pixels. One image may
    be larger than that.

    Example: ``whole_batches(dataset, split="val", sides=(224, 256), indices=np.arange(64), batch_pixels=2**22)``
    """
    samples = dataset.splits[split]
    width, height = samples.width[indices], samples.height[indices]
    resized = np.stack([resized_sizes(width, height, side) for side in sides], axis=1)

    # in this order any image may be in any shard: as many are kept as there is room for
    ahead = stretches_along(samples.shard[indices], samples.files.room_for(2 * len(samples.shards)) // 2 or 1)

    def plans(reached: Reached) -> Iterator[WholePlan]:
        for rows in slices(len(indices), batch_size, decoded_pixels(samples, indices)):
            reached(int(rows[0]))
            yield WholePlan(indices[rows], resized[rows])

    def run(executor: Executor) -> Iterator[WholeBatch]:
        waiting = [_Waiting(number) for number in range(len(sides))]
        with samples.files.following(ahead) as reached:
            for plan, images in executor.whole_images(plans(reached)):
                for row, sample in enumerate(plan.index):
                    for place, group in zip(waiting, images, strict=True):
                        if place.closes_before(group[row], batch_pixels):
                            yield place.take()
                        place.add(group[row], int(sample))
        for place in waiting:
            if place.images:
                yield place.take()

    return Loader(lambda: executor_of(samples, batch_size, device, threads, prefetch, backend, None), run)


def stored_images(
    dataset: Dataset, *, split: str, indices: Int64, threads: int | None = None, backend: Backend = "auto"
) -> Loader[tuple[int, torch.Tensor]]:
    """Return images of a split as they are stored, in the order of ``indices``: sample number and uint8 [h, w, 3].

    They lie in the CPU's memory.

    Example: ``stored_images(dataset, split="val", indices=np.arange(64))``
    """
    samples = dataset.splits[split]
    sizes = np.stack([samples.height[indices], samples.width[indices]], axis=1).astype(np.int64)
    ahead = stretches_along(samples.shard[indices], samples.files.room_for(2 * len(samples.shards)) // 2 or 1)

    def plans(reached: Reached) -> Iterator[WholePlan]:
        for row in range(len(indices)):
            reached(row)
            yield WholePlan(indices[row : row + 1], sizes[row : row + 1, None])

    def run(executor: Executor) -> Iterator[tuple[int, torch.Tensor]]:
        with samples.files.following(ahead) as reached:
            for plan, ((image,),) in executor.whole_images(plans(reached)):
                yield int(plan.index[0]), image

    return Loader(lambda: executor_of(samples, 1, None, threads, None, backend, None), run)


class _Waiting:
    """Images of one shorter side and one size that wait for their batch to be full."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.images: list[torch.Tensor] = []
        self.index: list[int] = []

    def closes_before(self, image: torch.Tensor, batch_pixels: int) -> bool:
        if not self.images:
            return False
        pixels = image.shape[0] * image.shape[1]
        return image.shape != self.images[0].shape or (len(self.images) + 1) * pixels > batch_pixels

    def add(self, image: torch.Tensor, sample: int) -> None:
        self.images.append(image)
        self.index.append(sample)

    def take(self) -> WholeBatch:
        batch = WholeBatch(torch.stack(self.images), torch.tensor(self.index), self.side)
        self.images, self.index = [], []
        return batch
