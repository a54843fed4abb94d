"""The boxes that a localiser finds in whole images: the best of each class, none much like a better one."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torchvision.ops import nms

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend
from resnet_pipeline.data.order import Int64
from resnet_pipeline.data.whole_images import by_shape, whole_batches
from resnet_pipeline.detection.box_files import Float32
from resnet_pipeline.detection.localisation import BATCH_PIXELS, stored_boxes
from resnet_pipeline.detection.localiser import Localiser

_log = logging.getLogger(__name__)

# Faster R-CNN's for its proposals, which the appendix keeps; the number before is torchvision's
_IOU, _BEFORE = 0.7, 1_000
_LEAST_SIDE = 1.0  # of a box, in pixels of the stored image


def find_boxes(
    localiser: Localiser,
    dataset: Dataset,
    split: str,
    rows: Int64,
    classes: Int64,
    *,
    sides: Sequence[int],
    count: int,
    batch_size: int,
    device: torch.device,
    backend: Backend = "auto",
    on_images: Callable[[int], None] = lambda images: None,
) -> Float32:
    """Return a localiser's ``count`` best boxes of each class of some images, float32 [n, k, count, 5].

    ``rows`` int64 [n] are the images of the split, ``classes`` int64 [n, k]. Whole images are seen at each of
    ``sides``; of the boxes of all sizes, 1,000 of each, those are left out that overlap a better one by an IoU of more
    than 0.7. If none of a class is a pixel wide, it is the whole image.

    Example: ``find_boxes(localiser, dataset, "val", rows, labels[:, None], sides=(256,), count=200, …)``
    """
    samples = dataset.splits[split]
    place = {int(row): number for number, row in enumerate(rows)}
    seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
    order = rows[by_shape(samples.width[rows], samples.height[rows])]
    localiser.eval()
    with (
        torch.inference_mode(),
        whole_batches(
            dataset, split=split, sides=sides, indices=order, batch_size=batch_size, batch_pixels=BATCH_PIXELS,
            device=device, backend=backend,
        ) as batches,
    ):  # fmt: skip
        for batch in batches:
            own = batch.index.numpy()
            asked = torch.from_numpy(classes[[place[int(row)] for row in own]]).to(device)
            found, logits = localiser.candidates(batch.images.to(device), asked, _BEFORE)
            flat = stored_boxes(found.double().cpu().flatten(1, 2).numpy(), samples, own, sides[batch.side])
            stored = torch.from_numpy(flat).float().view(found.shape)
            for number, row in enumerate(own):
                seen[int(row)].append((stored[number], logits[number].float().cpu()))
            on_images(len(own) if batch.side == 0 else 0)
        best = np.zeros((len(rows), classes.shape[1], count, 5), np.float32)
        best[..., 4] = -np.inf
        for row, parts in seen.items():
            boxes, logits = (torch.cat(each, dim=1).to(device) for each in zip(*parts, strict=True))
            size = boxes.new_tensor([samples.width[row], samples.height[row]] * 2)
            for number in range(classes.shape[1]):
                chosen = best_apart(boxes[number].minimum(size), logits[number], count)
                if not len(chosen):
                    chosen = torch.cat([torch.zeros_like(size[:2]), size[2:], logits[number].max()[None]])[None]
                best[place[row], number, : len(chosen)] = chosen.cpu().numpy()
    return best


def best_apart(boxes: torch.Tensor, logits: torch.Tensor, count: int) -> torch.Tensor:
    """Return the best boxes float [M, 4] with their logits float [M], as [at most count, 5], the best first.

    None overlaps a better one by an IoU of more than 0.7, and none is narrower than a pixel.

    Example: ``best_apart(boxes, logits, 200)``
    """
    wide = ((boxes[:, 2:] - boxes[:, :2]) >= _LEAST_SIDE).all(dim=1)
    boxes, logits = boxes[wide], logits[wide]
    kept = nms(boxes, logits, _IOU)[:count]
    return torch.cat([boxes[kept], logits[kept, None]], dim=1)
