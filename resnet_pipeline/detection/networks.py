"""Faster R-CNN and Mask R-CNN on our networks: torchvision's parts, joined as the paper's appendix A joins them.

C4 (the paper): all stages but the last are shared by the proposals and the detector, regions are pooled from their map,
and the last stage (conv5_x of ImageNet's networks) runs per region, in the place of VGG's fully connected layers. FPN
(Lin et al., 2016): every stage gives a map, as in torchvision's networks, whose names the modules have.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from resnet_pipeline.config import DetectionConfig
from resnet_pipeline.errors import UserError
from resnet_pipeline.models import Normalize
from resnet_pipeline.models.resnet import ResNet

Target = dict[str, torch.Tensor]
"""Of an image: boxes float [K, 4], labels int64 [K] from 1 on, masks uint8 [K, H, W] if the network has them."""
Found = dict[str, torch.Tensor]
"""Of an image: boxes float [K, 4], scores float [K], labels int64 [K] from 1 on, masks float [K, 1, H, W]."""

# Of C4: Faster R-CNN's released defaults (py-faster-rcnn, config.py), which the paper's appendix A keeps
# FPN has torchvision's, with which its published networks are tested
_BEFORE_NMS_TRAIN, _BEFORE_NMS_TEST, _TEST_NMS = 12_000, 6_000, 0.3
_FOREGROUND, _LEAST_BACKGROUND = 0.5, 0.1


class Body(nn.Module):
    """The first layers and some stages of a network: maps by name, ``0`` the first of them.

    ``outputs`` are the stages whose maps are returned, from 1 on. The modules are the network's own.
    """

    def __init__(self, network: ResNet, outputs: Sequence[int]) -> None:
        super().__init__()
        self.conv1, self.bn1, self.maxpool = network.conv1, network.bn1, network.maxpool
        self._stages = network.stage_names[: max(outputs)]
        for name in self._stages:
            self.add_module(name, network.get_submodule(name))
        self._outputs = {network.stage_names[stage - 1]: str(i) for i, stage in enumerate(outputs)}

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Map images float [N, 3, H, W] to maps float [N, C, h, w]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(images)), inplace=self.training))
        maps: OrderedDict[str, torch.Tensor] = OrderedDict()
        for name in self._stages:
            x = self.get_submodule(name)(x)
            if name in self._outputs:
                maps[self._outputs[name]] = x
        return maps


class C4Backbone(Body):
    """All stages but the last, and the map of the last of them."""

    def __init__(self, network: ResNet) -> None:
        super().__init__(network, [len(network.stage_names) - 1])
        self.out_channels = channels_of(network)[-2]


class FpnBackbone(nn.Module):
    """A pyramid of 256 channels over the maps of every stage, and a coarser one for large proposals."""

    def __init__(self, network: ResNet, channels: int = 256) -> None:
        super().__init__()
        stages = len(network.stage_names)
        self.body = Body(network, range(1, stages + 1))
        self.fpn = FeaturePyramidNetwork(channels_of(network), channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        """Map images float [N, 3, H, W] to maps float [N, 256, h, w]."""
        maps: OrderedDict[str, torch.Tensor] = self.fpn(self.body(images))
        return maps


class LastStage(nn.Module):
    """The last stage on pooled regions float [K, C, r, r]: features float [K, D], averaged over the map."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """Return the features of regions."""
        features: torch.Tensor = self.stage(regions).mean(dim=(2, 3))
        return features


class SharedStage(nn.Module):
    """The last stage of the boxes once more, for masks (He et al., 2017, figure 4, left): its tensors are theirs."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self._stage = (stage,)  # not as a module of this one, so that a file holds it once

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """Map regions float [K, C, r, r] to float [K, D, r / 2, r / 2]."""
        features: torch.Tensor = self._stage[0](regions)
        return features


class ContextPool(nn.Module):
    """Pools each region, and each whole image as one more region (the paper, appendix B: global context).

    Returns the regions float [K, C, r, r], the images float [N, C, r, r], and each region's image int64 [K].
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(
        self, maps: dict[str, torch.Tensor], proposals: list[torch.Tensor], shapes: list[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pool the proposals float [K, 4] of each image, and the images of ``shapes`` (height, width)."""
        whole = [
            boxes.new_tensor([[0, 0, width, height]]) for boxes, (height, width) in zip(proposals, shapes, strict=True)
        ]
        image = torch.cat([boxes.new_full((len(boxes),), i, dtype=torch.long) for i, boxes in enumerate(proposals)])
        return self.pool(maps, proposals, shapes), self.pool(maps, whole, shapes), image


class ContextHead(nn.Module):
    """The last stage on regions and on whole images: each region's features float [K, 2 D] with its image's behind."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.head = LastStage(stage)

    def forward(self, pooled: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Return the features of what `ContextPool` returned."""
        regions, images, image = pooled
        return torch.cat([self.head(regions), self.head(images)[image]], dim=1)


class Batches(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Puts images of several sizes into one batch, zeros around them; neither resizes nor normalises."""

    def __init__(self) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=[0.0] * 3, image_std=[1.0] * 3)

    def resize(self, image: torch.Tensor, target: Target | None = None) -> tuple[torch.Tensor, Target | None]:
        """Return them as they are; torchvision resizes in evaluation whatever its options say."""
        return image, target


class RegionMatcher:
    """Matches proposals as Faster R-CNN does: foreground from an IoU of 0.5 on, background from 0.1 to 0.5.

    What overlaps less than that is neither, so that the background that is learned is that near objects. Called with
    IoUs float [objects, proposals]; returns for each proposal its object, or one of the two constants.
    """

    BELOW_LOW_THRESHOLD = -1
    BETWEEN_THRESHOLDS = -2

    def __call__(self, overlaps: torch.Tensor) -> torch.Tensor:
        """Return int64 [proposals]."""
        best, object_ = overlaps.max(dim=0)
        object_ = torch.where(best < _FOREGROUND, self.BELOW_LOW_THRESHOLD, object_)
        return torch.where(best < _LEAST_BACKGROUND, self.BETWEEN_THRESHOLDS, object_)


class Detector(nn.Module):
    """A detector with its preprocessing.

    In training `forward` returns the losses by name; in evaluation what it found in each image, in its pixels.

    Example::

        build_detector(build_model("resnet50"), DetectionConfig(), classes=20, normalize=Normalize(mean))([image])
    """

    def __init__(self, normalize: Normalize, rcnn: FasterRCNN) -> None:
        super().__init__()
        self.normalize = normalize
        self.rcnn = rcnn

    def forward(self, images: Sequence[torch.Tensor], targets: list[Target] | None = None) -> Any:
        """Return losses, or what was found, for images uint8 [H, W, 3] of any sizes."""
        normalized = [self.normalize(image[None])[0] for image in images]
        return self.rcnn(normalized, targets)


def channels_of(network: ResNet) -> list[int]:
    """Return the channels of each stage's map.

    Example: ``channels_of(build_model("resnet50"))`` is [256, 512, 1024, 2048].
    """
    expansion = network.architecture.block.expansion
    return [width * expansion for _, width in network.architecture.stages]


def build_detector(
    network: ResNet,
    config: DetectionConfig,
    *,
    classes: int,
    normalize: Normalize,
) -> Detector:
    """Return a detector of ``classes`` kinds of objects, whose backbone is the network's own modules.

    Images are taken at the size that they have: whoever loads them resizes them (`batches.detector_sizes`). With
    ``config.norm`` frozen, batch norm is the linear map of the network's averages (the paper, appendix A), which are to
    be loaded before. New layers are drawn from PyTorch's global generator.
    """
    if config.norm == "frozen":
        freeze_batch_norm(network)
    common: dict[str, Any] = {
        "rpn_post_nms_top_n_test": config.proposals,
        "rpn_batch_size_per_image": config.sampled_anchors,
        "box_score_thresh": config.least_score,
        "box_detections_per_img": config.detections,
        "box_batch_size_per_image": config.sampled_regions,
    }
    form = _c4(network, config, classes) if config.form == "c4" else _fpn(network, config, classes)
    rcnn = (MaskRCNN if config.masks else FasterRCNN)(**common, **form)
    rcnn.transform = Batches()
    rcnn.rpn.min_size = config.least_side if config.form == "c4" else 1e-3
    if config.form == "c4":
        rcnn.roi_heads.proposal_matcher = RegionMatcher()
    if config.context:  # torchvision's constructor takes no other pool than its own
        rcnn.roi_heads.box_roi_pool = ContextPool(rcnn.roi_heads.box_roi_pool)
    return Detector(normalize, rcnn)


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm below a module by the linear map of its averages, which training leaves alone.

    Example: ``freeze_batch_norm(network)``
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(
                {key: value for key, value in child.state_dict().items() if "num_batches" not in key}
            )
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)


def _anchors(config: DetectionConfig, levels: int) -> AnchorGenerator:
    """Return the anchors: all sizes on one map, or one size for each level of a pyramid."""
    if levels == 1:
        sizes: tuple[tuple[int, ...], ...] = (config.anchor_sizes,)
    elif len(config.anchor_sizes) == levels:
        sizes = tuple((size,) for size in config.anchor_sizes)
    else:
        raise UserError(
            f"detection.anchor_sizes must name {levels} sizes, one for each level of the pyramid, not "
            f"{len(config.anchor_sizes)}"
        )
    return AnchorGenerator(sizes, (config.anchor_ratios,) * levels)


def _c4(network: ResNet, config: DetectionConfig, classes: int) -> dict[str, Any]:
    last = network.get_submodule(network.stage_names[-1])
    channels = channels_of(network)
    anchors = _anchors(config, 1)
    pool = MultiScaleRoIAlign(["0"], output_size=config.pooled, sampling_ratio=2)
    features = channels[-1]
    parts: dict[str, Any] = {
        "rpn_pre_nms_top_n_train": _BEFORE_NMS_TRAIN,
        "rpn_pre_nms_top_n_test": _BEFORE_NMS_TEST,
        "box_nms_thresh": _TEST_NMS,
        "backbone": C4Backbone(network),
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(channels[-2], anchors.num_anchors_per_location()[0]),
        "box_roi_pool": pool,
        "box_head": ContextHead(last) if config.context else LastStage(last),
        "box_predictor": FastRCNNPredictor((1 + config.context) * features, classes + 1),
    }
    if config.masks:
        parts |= {
            "mask_roi_pool": MultiScaleRoIAlign(["0"], output_size=config.mask_pooled, sampling_ratio=2),
            "mask_head": SharedStage(last),
            "mask_predictor": MaskRCNNPredictor(features, 256, classes + 1),
        }
    return parts


def _fpn(network: ResNet, config: DetectionConfig, classes: int) -> dict[str, Any]:
    levels = len(network.stage_names) + 1
    anchors = _anchors(config, levels)
    names = [str(i) for i in range(levels - 1)]
    backbone = FpnBackbone(network)
    parts: dict[str, Any] = {
        "backbone": backbone,
        "num_classes": classes + 1,
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(backbone.out_channels, anchors.num_anchors_per_location()[0]),
        "box_roi_pool": MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2),
    }
    if config.masks:
        parts["mask_roi_pool"] = MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2)
    return parts
