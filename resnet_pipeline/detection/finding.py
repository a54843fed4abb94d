"""What a detector finds in images: in a staged split, each rank its share, or in images in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval.core import mask as coco_mask
from torch import nn
from torch.nn import functional as F

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend
from resnet_pipeline.data.order import Int64
from resnet_pipeline.detection.batches import split_batches
from resnet_pipeline.detection.improvements import ImprovedDetector
from resnet_pipeline.detection.networks import Found
from resnet_pipeline.detection.results import ImageFound
from resnet_pipeline.device import local_device
from resnet_pipeline.training.distributed import all_gather_objects


def find_objects(
    model: nn.Module,
    dataset: Dataset,
    split: str,
    config: RunConfig,
    *,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
    backend: Backend = "auto",
    on_images: Callable[[int], None] = lambda images: None,
) -> list[ImageFound]:
    """Return what a network in evaluation mode finds in each image of a split, in its order, the same on all ranks.

    It is a `Detector`, or an `ImprovedDetector`, which sees the images at its scales, too. Images are resized as the
    config says (``views.resize``, ``detection.longest``). ``on_images`` hears of the images of each batch.

    Example: ``find_objects(detector.eval(), dataset, "val", config, device=torch.device("cpu"))[0].box``
    """
    assert config.detection is not None  # it is a detector's
    samples = dataset.splits[split]
    improved = model.improvements if isinstance(model, ImprovedDetector) else None
    own: list[tuple[int, ImageFound]] = []
    with (
        torch.inference_mode(),
        split_batches(
            dataset,
            split=split,
            shorter_side=config.views.resize,
            longest=config.detection.longest,
            scales=improved.scales if improved else (),
            batch_size=config.micro_batch,
            rank=rank,
            world=world,
            device=device,
            backend=backend,
        ) as batches,
    ):
        for batch in batches:
            images = [[image.to(device) for image in one] for one in (batch.images, *batch.others)]
            outputs = model(list(zip(*images, strict=True)) if improved else images[0])
            for sample, found, scale in zip(batch.index.tolist(), outputs, batch.scale, strict=True):
                size = int(samples.height[sample]), int(samples.width[sample])
                own.append((sample, image_found(found, (float(scale[0]), float(scale[1])), size)))
            on_images(len(batch.images))
    by_sample = dict(pair for part in all_gather_objects(own, world) for pair in part)
    return [by_sample[i] for i in range(len(samples))]


def find_by_detector(
    model: nn.Module,
    config: RunConfig,
    dataset: Dataset,
    split: str,
    places: Int64,
    on_images: Callable[[int], None],
) -> list[ImageFound]:
    """Return what a detector finds: with its first two arguments given it is a `Find`.

    Example: ``partial(find_by_detector, detector, config)``
    """
    device = local_device()
    return find_objects(model.to(device), dataset, split, config, device=device, on_images=on_images)


def image_found(found: Found, scale: tuple[float, float], size: tuple[int, int]) -> ImageFound:
    """Return what a network found in a resized image as it is in the stored one of ``size`` (height, width)."""
    box = found["boxes"].cpu().double().numpy() / np.array([*scale, *scale])
    box = np.clip(box, 0, np.array([size[1], size[0], size[1], size[0]]))
    mask = None
    if "masks" in found:
        height, width = size
        drawn = found["masks"].float().cpu()
        if len(drawn):
            drawn = F.interpolate(drawn, (height, width), mode="bilinear", align_corners=False)
        mask = [_run_lengths(one[0].numpy() > 0.5) for one in drawn]
    return ImageFound(
        box=box,
        score=found["scores"].cpu().double().numpy(),
        label=found["labels"].cpu().numpy().astype(np.int64) - 1,
        mask=mask,
    )


def mask_pixels(run_lengths: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """Return a mask uint8 [height, width] of 0 and 1 from its run lengths.

    Example: ``mask_pixels(found.mask[0]).sum()``
    """
    pixels: npt.NDArray[np.uint8] = coco_mask.decode(run_lengths)
    return pixels


def _run_lengths(mask: Any) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = encoded["counts"]
    return {"size": list(encoded["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}
