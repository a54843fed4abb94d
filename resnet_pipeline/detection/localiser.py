"""One box for each class of an image: the paper's per-class proposals on a classifier (appendix C).

On the last map stand two sibling 1×1 convolutions. One says for each class, in a dimension of its own, whether an
anchor is on an object of it (binary logistic regression); the other has a box regression for each class. Classes come
from elsewhere: from the truth, or from a classifier.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou

from resnet_pipeline.config import LocalisationConfig
from resnet_pipeline.detection.networks import channels_of, freeze_batch_norm
from resnet_pipeline.models import Normalize
from resnet_pipeline.models.resnet import ResNet

# Faster R-CNN's defaults for proposals, which the appendix keeps
_POSITIVE, _NEGATIVE = 0.7, 0.3
_BETA = 1 / 9  # of the smooth L1 loss
_DEVIATION = 0.01  # of the new layers' weights
_CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))


class Localiser(nn.Module):
    """A network with its preprocessing that gives each of an image's classes a box.

    Its modules are the classifier's own; the classifier's last layer is not among them.

    Example::

        localiser = Localiser(Normalize(mean), build_model("resnet50"), LocalisationConfig(), classes=1000).eval()
        boxes, scores = localiser(images, classes)
    """

    def __init__(self, normalize: Normalize, network: ResNet, config: LocalisationConfig, *, classes: int) -> None:
        super().__init__()
        if config.norm == "frozen":
            freeze_batch_norm(network)
        channels = channels_of(network)[-1]
        network.fc = nn.Identity()  # type: ignore[assignment]  # no weights that training never reaches
        self.normalize, self.trunk = normalize, network  # not "network": files of classifiers have that name
        self.stride = stride_of(network)
        self._config, self._classes = config, classes
        self._anchors = len(config.anchor_sizes) * len(config.anchor_ratios)
        self.scores = nn.Linear(channels, self._anchors * classes)  # 1×1 convolutions, used where they are asked
        self.boxes = nn.Linear(channels, self._anchors * classes * 4)
        for layer in (self.scores, self.boxes):
            nn.init.normal_(layer.weight, std=_DEVIATION)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        images: torch.Tensor,
        classes: torch.Tensor,
        color: torch.Tensor | None = None,
        anchors: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best box of each class of images uint8 [N, H, W, 3], or what is said of some anchors.

        ``classes`` int64 [N, k]. Without ``anchors`` boxes float [N, k, 4] in pixels of the images, and the logits of
        the anchors that they come from, float [N, k]: the best of the whole map. With anchors int64 [N, S], places in
        `anchor_grid`, their logits float [N, S] and box deltas float [N, S, 4] for the first class.
        """
        if anchors is None:
            boxes, logits = self.candidates(images, classes, 1)
            return boxes[:, :, 0], logits[:, :, 0]
        flat = self.trunk.features(self.normalize(images, color)).flatten(2).transpose(1, 2)  # [N, places, C]
        return self._at(flat, classes[:, :1].expand(-1, anchors.shape[1]), anchors)

    def candidates(self, images: torch.Tensor, classes: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the boxes of the likeliest anchors of each class, M of them, the best first.

        ``images`` uint8 [N, H, W, 3], ``classes`` int64 [N, k]; boxes float [N, k, M, 4] in pixels of the images, not
        beyond them, and logits float [N, k, M]. M is ``most``, or the number of the map's anchors if these are fewer.

        Example: ``localiser.candidates(images, classes, 1000)``
        """
        features = self.trunk.features(self.normalize(images))
        height, width = features.shape[2:]
        flat = features.flatten(2).transpose(1, 2)  # [N, places, C]
        (score, score_bias), (side, side_bias) = self._of(self.scores, (1,)), self._of(self.boxes, (4,))
        logits = torch.einsum("npc,ankc->nkpa", flat, score[:, classes, 0])  # [A, N, k, C]
        logits = (logits + score_bias[:, classes, 0].permute(1, 2, 0)[:, :, None]).flatten(2)
        best, place = logits.topk(min(most, logits.shape[2]), dim=2)
        deltas = torch.einsum("npc,ankvc->nkpav", flat, side[:, classes])  # [A, N, k, 4, C]
        deltas = (deltas + side_bias[:, classes].permute(1, 2, 0, 3)[:, :, None]).flatten(2, 3)
        deltas = deltas.gather(2, place[..., None].expand(-1, -1, -1, 4))
        grid = anchor_grid(self._config, (height, width), self.stride).to(deltas)
        boxes = _CODER.decode_single(deltas.flatten(0, 2), grid[place].flatten(0, 2)).view(deltas.shape)
        most_sides = boxes.new_tensor([images.shape[2], images.shape[1]] * 2)
        return boxes.clamp(min=0).minimum(most_sides), best

    def _at(
        self, flat: torch.Tensor, classes: torch.Tensor, anchors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits [N, S] and box deltas [N, S, 4] of anchors int64 [N, S] for a class each, int64 [N, S]."""
        place, kind = anchors // self._anchors, anchors % self._anchors
        at = flat.gather(1, place[:, :, None].expand(-1, -1, flat.shape[2]))  # [N, S, C]
        both = []
        for layer, values in ((self.scores, 1), (self.boxes, 4)):
            weight, bias = self._of(layer, (values,))
            both.append(torch.einsum("nsc,nsvc->nsv", at, weight[kind, classes].to(at.dtype)) + bias[kind, classes])
        return both[0][:, :, 0], both[1]

    def _of(self, layer: nn.Linear, values: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's weights [anchors, classes, values, C] and biases [anchors, classes, values]."""
        shape = (self._anchors, self._classes, *values)
        return layer.weight.view(*shape, -1), layer.bias.view(shape)


def localisation_losses(
    logits: torch.Tensor, deltas: torch.Tensor, positive: torch.Tensor, wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the losses of class and box, as those of torchvision's proposals: both means over the sampled anchors.

    ``logits`` float [N, S] and ``deltas`` float [N, S, 4] are the network's; ``positive`` int64 [N, S] is 1, 0, or −1
    for what is no sample, ``wanted`` float [N, S, 4] the deltas of positive ones.

    Example: ``localisation_losses(*network(images, classes, None, anchors), positive, wanted)``
    """
    used = positive >= 0
    count = used.sum().clamp(min=1)
    each = F.binary_cross_entropy_with_logits(logits, positive.clamp(min=0).to(logits.dtype), reduction="none")
    away = F.smooth_l1_loss(deltas, wanted.to(deltas.dtype), beta=_BETA, reduction="none").sum(dim=2)
    return (each * used).sum() / count, (away * (positive == 1)).sum() / count


def stride_of(network: ResNet) -> int:
    """Return how many pixels of the image a place of the last map is.

    Example: ``stride_of(build_model("resnet50"))`` is 32.
    """
    first = 4 if network.architecture.stem == "imagenet" else 1
    return first << (len(network.stage_names) - 1)


def anchor_grid(config: LocalisationConfig, size: tuple[int, int], stride: int) -> torch.Tensor:
    """Return the anchors float [height · width · A, 4] of a map of ``size``, in pixels of the image, row by row.

    >>> anchor_grid(LocalisationConfig(anchor_sizes=(8,), anchor_ratios=(1.0,)), (1, 2), 32).tolist()
    [[-4.0, -4.0, 4.0, 4.0], [28.0, -4.0, 36.0, 4.0]]
    """
    generator = AnchorGenerator((config.anchor_sizes,), (config.anchor_ratios,))
    generator.set_cell_anchors(torch.float32, torch.device("cpu"))
    grid: torch.Tensor = generator.grid_anchors([list(size)], [[torch.tensor(stride), torch.tensor(stride)]])[0]
    return grid


def sampled_anchors(
    grid: torch.Tensor, boxes: torch.Tensor, draws: np.ndarray[Any, Any], count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ``count`` anchors, half of them on objects, the others on none (the paper: 1:1).

    ``grid`` float [M, 4]; ``boxes`` float [K, 4] are the image's objects; ``draws`` float [M] decide which are taken.
    Returns their places int64 [count], whether each is on an object int64 [count] (−1 beyond those that there are), and
    the deltas float [count, 4] to the object. Fewer on objects than a half are taken several times: of most objects few
    anchors overlap enough, and with negative ones instead these would dominate. On an object is what overlaps it by at
    least 0.7, or most of all; on none what overlaps each by less than 0.3.

    Example: ``sampled_anchors(grid, boxes, np.random.default_rng(0).random(len(grid)), 8)``
    """
    matched = torch.full((len(grid),), Matcher.BELOW_LOW_THRESHOLD)
    if len(boxes):
        matched = Matcher(_POSITIVE, _NEGATIVE, allow_low_quality_matches=True)(box_iou(boxes, grid))
    order = torch.from_numpy(np.argsort(draws, kind="stable"))
    on = order[matched[order] >= 0][: count // 2]
    on = on[torch.arange(count // 2) % len(on)] if len(on) else on
    off = order[matched[order] == Matcher.BELOW_LOW_THRESHOLD][: count - len(on)]
    places, positive = torch.zeros(count, dtype=torch.int64), torch.full((count,), -1)
    wanted = torch.zeros(count, 4)
    places[: len(on)], positive[: len(on)] = on, 1
    places[len(on) : len(on) + len(off)], positive[len(on) : len(on) + len(off)] = off, 0
    if len(on):
        wanted[: len(on)] = _CODER.encode_single(boxes[matched[on]], grid[on])
    return places, positive, wanted
