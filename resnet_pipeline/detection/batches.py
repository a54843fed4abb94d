"""Whole images with their objects: what a detector is trained on and tested on, each at a size of its own.

Which images a micro-batch has, their sizes and whether they are mirrored are functions of the seed and the position
alone, as in classification (`data.order`, `data.crops`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval.core import mask as coco_mask

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.data.crops import WholePlan, flips, shorter_sides
from resnet_pipeline.data.dataset import Dataset, Split, split_of_objects
from resnet_pipeline.data.loaders import (
    Backend,
    Executor,
    Loader,
    Stream,
    decoded_pixels,
    executor_of,
    slices,
    stream_batches,
)
from resnet_pipeline.data.objects import ImageObjects
from resnet_pipeline.data.order import Blocks, Int64, samples_at, stretches_along
from resnet_pipeline.data.shard_reader import Reached
from resnet_pipeline.detection.networks import Target


@dataclass(frozen=True)
class DetectionBatch:
    """N images uint8 [h, w, 3] of any sizes, with what is in them, or without for a test.

    ``index`` int64 [N] are the samples' numbers, ``scale`` float64 [N, 2] says how many pixels of the batch's image one
    of the stored image is, in x and y. ``position`` is that of the first image in the stream of the training samples,
    0 for a test: what is drawn at random for the batch depends on it. ``others`` are the same images at each further
    size of a test.
    """

    images: list[torch.Tensor]
    targets: list[Target]
    index: torch.Tensor
    scale: npt.NDArray[np.float64]
    position: int = 0
    others: list[list[torch.Tensor]] = field(default_factory=list)


def detector_sizes(
    width: npt.NDArray[np.int32], height: npt.NDArray[np.int32], shorter: npt.NDArray[np.int64], longest: int
) -> Int64:
    """Return (height, width) int64 [N, 2] of images whose shorter side becomes ``shorter`` [N] pixels.

    Less if the longer side would become more than ``longest`` (Fast R-CNN, and the paper's appendix A: 600 and 1000).

    >>> detector_sizes(np.array([640, 99], np.int32), np.array([480, 300], np.int32), np.full(2, 600), 1000).tolist()
    [[600, 800], [1000, 330]]
    """
    h, w = height.astype(np.float64), width.astype(np.float64)
    scale = np.minimum(shorter / np.minimum(h, w), longest / np.maximum(h, w))
    return np.maximum(np.floor(np.stack([h * scale, w * scale], axis=1) + 1e-6), 1).astype(np.int64)


def detector_pixels(height: int, width: int, shorter: int, longest: int) -> int:
    """Return the most pixels that an image of this size has while it is searched, decoded or resized.

    >>> detector_pixels(60, 80, shorter=600, longest=1000)
    480000
    """
    sizes = detector_sizes(np.array([width], np.int32), np.array([height], np.int32), np.array([shorter]), longest)
    return max(height * width, int(sizes[0, 0]) * int(sizes[0, 1]))


def object_batches(
    dataset: Dataset,
    *,
    split: str = "train",
    augment: AugmentConfig,
    longest: int,
    masks: bool,
    **stream: Unpack[Stream],
) -> Loader[DetectionBatch]:
    """Return this rank's micro-batches of training images with their objects, as ``data.loaders.train_batches`` does.

    Crowds are left out of the targets. Raises UserError if the split has no images, or its dataset no objects.

    Example::

        object_batches(dataset, augment=augment, longest=1000, masks=False, seed=0, batch=2, micro_batch=1, steps=9)
    """
    samples, seed = split_of_objects(dataset, split), stream["seed"]

    def planned(positions: Int64, blocks: Blocks | None) -> _Plan:
        index = samples_at(positions, samples=len(samples), seed=seed, blocks=blocks)
        shorter = shorter_sides(augment, seed, positions)
        return _planned(samples, index, shorter, longest, flips(augment, seed, positions), int(positions[0]))

    def carried(executor: Executor, plans: Iterator[_Plan], positions: Iterator[Int64]) -> Iterator[DetectionBatch]:
        return _batches(executor, samples, plans, masks=masks, targets=True)

    return stream_batches(samples, planned, carried, **stream)


def split_batches(
    dataset: Dataset,
    *,
    split: str,
    shorter_side: int,
    longest: int,
    scales: Sequence[int] = (),
    batch_size: int,
    indices: Int64 | None = None,
    rank: int = 0,
    world: int = 1,
    device: torch.device | None = None,
    threads: int | None = None,
    prefetch: int | None = None,
    backend: Backend = "auto",
) -> Loader[DetectionBatch]:
    """Return this rank's images of a split, each exactly once, in the order of the shards, without targets.

    ``scales`` are further shorter sides at which each image is wanted; ``longest`` is for ``shorter_side``, and grows
    and shrinks with them.

    Example: ``split_batches(dataset, split="val", shorter_side=600, longest=1000, batch_size=1)``
    """
    samples = dataset.splits[split]
    chosen = (np.arange(len(samples), dtype=np.int64) if indices is None else indices)[rank::world]
    decoded, ahead = decoded_pixels(samples, chosen), stretches_along(samples.shard[chosen], 1)

    def plans(reached: Reached) -> Iterator[_Plan]:
        for rows in slices(len(chosen), batch_size, decoded):
            reached(int(rows[0]))
            index = chosen[rows]
            unmoved = np.zeros(len(index), dtype=np.bool_)
            plan = _planned(samples, index, np.full(len(index), shorter_side), longest, unmoved, 0)
            width, height = samples.width[index], samples.height[index]
            further = [
                detector_sizes(width, height, np.full(len(index), side), longest * side // shorter_side)
                for side in scales
            ]
            yield replace(plan, resized=np.stack([plan.resized[:, 0], *further], axis=1))

    def run(executor: Executor) -> Iterator[DetectionBatch]:
        with samples.files.following(ahead) as reached:
            yield from _batches(executor, samples, plans(reached), masks=False, targets=False)

    return Loader(lambda: executor_of(samples, batch_size, device, threads, prefetch, backend, None), run)


def target_of(
    found: ImageObjects, size: tuple[int, int], scale: tuple[float, float], *, flip: bool, masks: bool
) -> Target:
    """Return an image's objects but crowds as a target, in an image resized to ``size`` (height, width).

    ``scale`` is (x, y). Labels are those of the dataset and one more: 0 is the background. An object without a mask has
    its box for one.
    """
    kept = np.flatnonzero(~found.crowd)
    box = found.box[kept] * np.array([*scale, *scale])
    height, width = size
    if flip:
        box = np.stack([width - box[:, 2], box[:, 1], width - box[:, 0], box[:, 3]], axis=1)
    target = {
        "boxes": torch.from_numpy(box).float().reshape(-1, 4),
        "labels": torch.from_numpy(found.label[kept].astype(np.int64) + 1),
    }
    if masks:
        drawn = [mask_of(found, int(row), size, scale) for row in kept]
        stacked = np.stack(drawn) if drawn else np.zeros((0, height, width), np.uint8)
        target["masks"] = torch.from_numpy(np.ascontiguousarray(stacked[:, :, ::-1] if flip else stacked))
    return target


def mask_of(found: ImageObjects, row: int, size: tuple[int, int], scale: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """Return an object's mask uint8 [height, width] of 0 and 1 in the resized image; its box if it has none."""
    height, width = size
    mask: Any = found.segmentation(row)
    if isinstance(mask, list):
        scaled = [(np.array(polygon).reshape(-1, 2) * scale).reshape(-1).tolist() for polygon in mask]
        drawn: npt.NDArray[np.uint8] = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(scaled, height, width)))
        return drawn
    if mask is not None:
        encoded = coco_mask.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask
        whole = coco_mask.decode(encoded)
        rows = np.minimum((np.arange(height) + 0.5) / scale[1], len(whole) - 1).astype(np.int64)
        columns = np.minimum((np.arange(width) + 0.5) / scale[0], whole.shape[1] - 1).astype(np.int64)
        nearest: npt.NDArray[np.uint8] = whole[rows][:, columns]
        return nearest
    left, top, right, bottom = found.box[row] * np.array([*scale, *scale])
    box = np.zeros((height, width), np.uint8)
    box[math.floor(top) : math.ceil(bottom), math.floor(left) : math.ceil(right)] = 1
    return box


@dataclass(frozen=True)
class _Plan(WholePlan):
    """Whole images of one size each, whether each is mirrored, and the position of the first."""

    flip: npt.NDArray[np.bool_]
    scale: npt.NDArray[np.float64]
    position: int


def _planned(
    samples: Split, index: Int64, shorter: Int64, longest: int, flip: npt.NDArray[np.bool_], position: int
) -> _Plan:
    width, height = samples.width[index], samples.height[index]
    sizes = detector_sizes(width, height, shorter, longest)
    scale = np.stack([sizes[:, 1] / width, sizes[:, 0] / height], axis=1)
    return _Plan(index, sizes[:, None, :], flip, scale, position)


def _batches(
    executor: Executor, samples: Split, plans: Iterator[_Plan], *, masks: bool, targets: bool
) -> Iterator[DetectionBatch]:
    for plan, images in executor.whole_images(plans):
        assert isinstance(plan, _Plan)  # an executor yields the plans that it was given
        yield DetectionBatch(
            [image.flip(1) if flip else image for image, flip in zip(images[0], plan.flip, strict=True)],
            _targets(samples, plan, masks) if targets else [],
            torch.from_numpy(plan.index),
            plan.scale,
            plan.position,
            images[1:],
        )


def _targets(samples: Split, plan: _Plan, masks: bool) -> list[Target]:
    assert samples.objects is not None  # split_of_objects has looked
    found = [samples.objects.of(int(sample)) for sample in plan.index]
    return [
        target_of(each, (int(size[0]), int(size[1])), (float(x), float(y)), flip=bool(flip), masks=masks)
        for each, size, (x, y), flip in zip(found, plan.resized[:, 0], plan.scale, plan.flip, strict=True)
    ]
