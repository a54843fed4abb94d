"""R-CNN for localisation: a warped region's score and box for a class, and what it makes of a localiser's boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torchvision.models.detection._utils import BoxCoder

from resnet_pipeline.config import RegionsConfig
from resnet_pipeline.data.crops import Plan
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend
from resnet_pipeline.data.order import Int64
from resnet_pipeline.data.resize import Resizer
from resnet_pipeline.data.whole_images import stored_images
from resnet_pipeline.detection.box_files import Float32
from resnet_pipeline.detection.metrics import Float64
from resnet_pipeline.detection.networks import channels_of, freeze_batch_norm
from resnet_pipeline.models import Normalize
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.parallel import Ahead

_DEVIATION = 0.01  # of the new layers' weights
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))
"""How a box is told from a region: as torchvision's second stage does, so that deltas have about unit variance."""


class RegionNetwork(nn.Module):
    """A network with its preprocessing that says of a warped region whether it is a class's object, and where that is.

    Its modules are the classifier's own; in place of its last layer stand two, each with values for every class: a
    score (binary logistic regression) and a box.

    Example::

        network = RegionNetwork(Normalize(mean), build_model("resnet50"), RegionsConfig(), classes=1000).eval()
        logits, deltas = network(regions, classes)
    """

    def __init__(self, normalize: Normalize, network: ResNet, config: RegionsConfig, *, classes: int) -> None:
        super().__init__()
        if config.norm == "frozen":
            freeze_batch_norm(network)
        channels, self._classes = channels_of(network)[-1], classes
        network.fc = nn.Identity()  # type: ignore[assignment]  # no weights that training never reaches
        self.normalize, self.trunk = normalize, network  # not "network": files of classifiers have that name
        self.scores, self.boxes = nn.Linear(channels, classes), nn.Linear(channels, 4 * classes)
        for layer in (self.scores, self.boxes):
            nn.init.normal_(layer.weight, std=_DEVIATION)
            nn.init.zeros_(layer.bias)

    def forward(
        self, images: torch.Tensor, classes: torch.Tensor, color: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits float [N] and box deltas [N, 4] of regions uint8 [N, H, W, 3] for a class each, int64 [N].

        The deltas are from the region to the object's box, as torchvision's `BoxCoder` has them (`moved`).
        """
        pooled = self.trunk.features(self.normalize(images, color)).mean(dim=(2, 3))
        own = classes[:, None]
        deltas = self.boxes(pooled).view(len(pooled), self._classes, 4)
        return self.scores(pooled).gather(1, own)[:, 0], deltas.gather(1, own[..., None].expand(-1, -1, 4))[:, 0]


def windows_of(boxes: npt.NDArray[Any], size: tuple[int, int]) -> Int64:
    """Return boxes [M, 4] as windows int64 [M, 4] (y, x, height, width) of whole pixels in an image (width, height).

    >>> windows_of(np.array([[1.4, 2.6, 9.0, 99.0]]), (10, 20)).tolist()
    [[3, 1, 17, 8]]
    """
    most = np.array([*size, *size])
    corners = np.clip(np.rint(boxes), 0, most).astype(np.int64)
    low = np.minimum(corners[:, :2], most[:2] - 1)
    high = np.maximum(corners[:, 2:], low + 1)
    windows: Int64 = np.concatenate([low[:, ::-1], (high - low)[:, ::-1]], axis=1)
    return windows


def moved(windows: Int64, deltas: torch.Tensor, size: tuple[int, int]) -> Float64:
    """Return the boxes float64 [M, 4] that deltas float [M, 4] make of windows, not beyond the image (width, height).

    Example: ``moved(windows, deltas, (500, 375))``
    """
    boxes: Float64 = CODER.decode_single(deltas.double().cpu(), torch.from_numpy(as_boxes(windows))).numpy()
    return np.clip(boxes, 0, np.array([*size, *size]))


def as_boxes(windows: Int64) -> Float64:
    """Return windows int64 [M, 4] (y, x, height, width) as boxes float64 [M, 4].

    >>> as_boxes(np.array([[3, 1, 17, 8]])).tolist()
    [[1.0, 3.0, 9.0, 20.0]]
    """
    low, sides = windows[:, 1::-1], windows[:, :1:-1]
    return np.concatenate([low, low + sides], axis=1).astype(np.float64)


def _answers(
    networks: Sequence[nn.Module], images: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the means over networks of their probabilities [N] and box deltas [N, 4], float64."""
    said = [network(images, labels) for network in networks]
    logits, deltas = (torch.stack(each).double() for each in zip(*said, strict=True))
    return logits.sigmoid().mean(dim=0), deltas.mean(dim=0)


def rescored(
    networks: Sequence[nn.Module],
    dataset: Dataset,
    split: str,
    rows: Int64,
    classes: Int64,
    boxes: Float32,
    *,
    crop: int,
    batch_size: int,
    device: torch.device,
    backend: Backend = "auto",
    on_images: Callable[[int], None] = lambda images: None,
) -> tuple[Float64, Float64]:
    """Return the box float64 [n, k, 4] of each class that R-CNNs find likeliest, and how likely, float64 [n, k].

    ``rows`` int64 [n] are images of the split, ``classes`` int64 [n, k], ``boxes`` float32 [n, k, M, 5] what localisers
    have found. Each is cut out and warped to ``crop``²; probabilities and deltas are the means over the networks, which
    are in evaluation mode.

    Example: ``rescored([network], dataset, "val", rows, labels[:, None], boxes, crop=224, batch_size=64, …)``
    """
    samples = dataset.splits[split]
    found, likely = np.zeros((*classes.shape, 4)), np.zeros(classes.shape)

    def cut() -> Iterator[tuple[int, Int64, Int64, torch.Tensor]]:
        """Yield number, the place among its classes of each region, windows and warped regions of each image."""
        with (
            stored_images(dataset, split=split, indices=rows, backend=backend) as images,
            closing(Resizer(torch.get_num_threads())) as resizer,
        ):
            for number, (_, image) in enumerate(images):
                own, which = np.nonzero(boxes[number, :, :, 4] > -np.inf)
                windows = windows_of(boxes[number, own, which, :4], (image.shape[1], image.shape[0]))
                none = np.zeros(len(own), np.bool_)
                plan = Plan(rows[number].repeat(len(own)), windows, crop, none, np.zeros((len(own), 3), np.float32))
                parts = [image[y : y + h, x : x + w] for y, x, h, w in windows.tolist()]
                yield number, own.astype(np.int64), windows, resizer.crops(plan, parts)

    with torch.inference_mode(), closing(Ahead(cut(), 2)) as regions:
        for number, own, windows, images in regions:
            asked = torch.from_numpy(classes[number, own])
            said = [
                _answers(networks, part.to(device), labels.to(device))
                for part, labels in zip(torch.split(images, batch_size), torch.split(asked, batch_size), strict=True)
            ]
            chances, deltas = (torch.cat(each).cpu() for each in zip(*said, strict=True))
            row = int(rows[number])
            best = moved(windows, deltas, (int(samples.width[row]), int(samples.height[row])))
            for place in np.unique(own):
                at = np.flatnonzero(own == place)
                at = at[int(chances[at].argmax())]
                found[number, place], likely[number, place] = best[at], float(chances[at])
            on_images(1)
    return found, likely
