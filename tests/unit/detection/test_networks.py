"""Detectors against torchvision's own, with the same weights."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from resnet_pipeline.config import ConfigError, DetectionConfig
from resnet_pipeline.detection.networks import (
    ContextHead,
    ContextPool,
    LastStage,
    RegionMatcher,
    build_detector,
    freeze_batch_norm,
)
from resnet_pipeline.errors import UserError
from resnet_pipeline.models import Normalize, build_model

MEAN = torch.tensor([120.0, 110.0, 100.0])
SIZES = (32, 64, 128, 256, 512)


@pytest.fixture
def images():
    torch.manual_seed(7)
    return [torch.randint(0, 256, size, dtype=torch.uint8) for size in ((96, 128, 3), (128, 96, 3))]


def plain(images):
    return [(image.float() - MEAN).permute(2, 0, 1) for image in images]


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys() and len(one["boxes"]) > 0
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_pyramid_with_torchvision_s_weights_finds_what_torchvision_finds(images):
    torch.manual_seed(1)
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, box_score_thresh=0.0,
        rpn_post_nms_top_n_test=50, box_detections_per_img=20, min_size=96, max_size=128,
        image_mean=[0.0] * 3, image_std=[1.0] * 3,
    ).eval()  # fmt: skip
    config = DetectionConfig(form="fpn", masks=True, norm="batch", anchor_sizes=SIZES, least_score=0, proposals=50,
                             detections=20)  # fmt: skip
    ours = build_detector(build_model("resnet50", stride="v1.5"), config, classes=3, normalize=Normalize(MEAN)).eval()
    ours.rcnn.load_state_dict(theirs.state_dict())
    with torch.inference_mode():
        same(ours(images), theirs(plain(images)))


@pytest.mark.slow
def test_a_pyramid_is_trained_as_torchvision_s_own_detector(images):
    """The same losses and gradients to the last bit: no setting of the form is another than torchvision's."""
    torch.manual_seed(1)
    theirs = FasterRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5), 4)
    config = DetectionConfig(form="fpn", anchor_sizes=SIZES, sampled_regions=512, proposals=1_000)
    ours = build_detector(build_model("resnet18", shortcut="B"), config, classes=3, normalize=Normalize(MEAN))
    ours.rcnn.load_state_dict(theirs.state_dict())
    theirs.transform = ours.rcnn.transform  # neither resizes
    box = torch.tensor([[10.0, 12, 60, 70], [40, 20, 90, 90]])
    targets = [{"boxes": box, "labels": torch.tensor([1, 3])}, {"boxes": box[:1], "labels": torch.tensor([2])}]
    found = []
    for network, given in ((ours, images), (theirs, plain(images))):
        torch.manual_seed(2)  # of the sampled anchors and regions
        losses = network.train()(given, targets)
        sum(losses.values()).backward()
        found.append((losses, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}))
    (loss, gradients), (their_loss, their_gradients) = found
    assert loss == their_loss and len(loss) == 4
    assert {name.removeprefix("rcnn.") for name in gradients} == set(their_gradients)
    assert all(torch.equal(value, their_gradients[name.removeprefix("rcnn.")]) for name, value in gradients.items())


class Trunk(torch.nn.Sequential):
    out_channels = 1024


class Head(torch.nn.Module):
    def __init__(self, stage):
        super().__init__()
        self.stage = stage

    def forward(self, x):
        return self.stage(x).mean((2, 3))


def c4_by_torchvision(weights, proposals):
    """Return the C4 form put together of torchvision's ResNet-50, with the weights of a detector of ours."""
    resnet = torchvision.models.resnet50(weights=None)
    trunk = Trunk(resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1, resnet.layer2, resnet.layer3)
    anchors = AnchorGenerator(((128, 256, 512),), ((0.5, 1.0, 2.0),))
    rcnn = FasterRCNN(
        trunk, rpn_anchor_generator=anchors, rpn_head=RPNHead(1024, 9), box_head=Head(resnet.layer4),
        box_roi_pool=MultiScaleRoIAlign(["0"], 14, 2), box_predictor=FastRCNNPredictor(2048, 4),
        rpn_pre_nms_top_n_test=6000, rpn_post_nms_top_n_test=proposals, box_score_thresh=0.0, box_nms_thresh=0.3,
        box_detections_per_img=20, image_mean=[0.0] * 3, image_std=[1.0] * 3, min_size=96, max_size=128,
    )  # fmt: skip
    rcnn.rpn.min_size = 16
    places = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6"}

    def renamed(name):
        for ours, theirs in places.items():
            name = name.replace(f"backbone.{ours}.", f"backbone.{theirs}.")
        return name

    rcnn.load_state_dict({renamed(name): tensor for name, tensor in weights.items()})
    return rcnn.eval()


def settle(detector, images):
    """Let batch norm average what it sees: without that a network with random weights finds nothing finite."""
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    object_ = {"boxes": torch.tensor([[4.0, 4, 60, 60]]), "labels": torch.tensor([1])}
    with torch.no_grad():
        detector.train()(images, [{**object_, "masks": image[None, :, :, 0] // 128} for image in images])
    detector.eval()


@pytest.mark.slow
def test_the_c4_form_is_that_of_torchvision_s_parts(images):
    torch.manual_seed(2)
    config = DetectionConfig(norm="batch", least_score=0, proposals=30, detections=20)
    ours = build_detector(build_model("resnet50", stride="v1.5"), config, classes=3, normalize=Normalize(MEAN)).eval()
    settle(ours, images)
    theirs = c4_by_torchvision(ours.rcnn.state_dict(), 30)
    with torch.inference_mode():
        same(ours(images), theirs(plain(images)))


def test_frozen_batch_norm_computes_the_same_and_never_changes():
    torch.manual_seed(0)
    network = build_model("cifar-resnet8")
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
    x = torch.randn(3, 3, 32, 32)
    before = network.eval()(x)
    freeze_batch_norm(network)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(network.eval()(x), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network.train()(x), before, rtol=1e-5, atol=1e-5)
    assert all("bn" not in name for name, _ in network.named_parameters())


def test_context_is_the_whole_image_s_feature_behind_each_region_s():
    torch.manual_seed(0)
    maps = {"0": torch.randn(2, 8, 12, 16)}
    shapes, stage = [(48, 64), (40, 60)], torch.nn.Conv2d(8, 5, 3)
    pool = MultiScaleRoIAlign(["0"], 7, 2)
    proposals = [torch.tensor([[0.0, 0, 20, 20], [10, 10, 50, 40]]), torch.tensor([[5.0, 5, 30, 30]])]
    found = ContextHead(stage)(ContextPool(pool)(maps, proposals, shapes))
    whole = [torch.tensor([[0.0, 0, w, h]]) for h, w in shapes]
    head = LastStage(stage)
    for row, (image, region) in enumerate(((0, 0), (0, 1), (1, 0))):
        one = {"0": maps["0"][image : image + 1]}
        # the pool takes its scale from the largest image
        alone = MultiScaleRoIAlign(["0"], 7, 2)
        alone.scales, alone.map_levels = pool.scales, pool.map_levels
        own = head(alone(one, [proposals[image][region : region + 1]], [shapes[image]]))[0]
        context = head(alone(one, [whole[image]], [shapes[image]]))[0]
        torch.testing.assert_close(found[row], torch.cat([own, context]))


def test_regions_far_from_every_object_are_neither_foreground_nor_background():
    overlaps = torch.tensor([[0.9, 0.3, 0.05, 0.0, 0.5], [0.1, 0.49, 0.09, 0.0, 0.6]])
    assert RegionMatcher()(overlaps).tolist() == [0, -1, -2, -2, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"context": True}, {"masks": True}, {"form": "fpn", "anchor_sizes": (8, 16, 32, 64)}]
)
@pytest.mark.parametrize("name", ["cifar-resnet8", "cifar-plain8"])
def test_every_part_of_a_detector_learns(name, options):
    torch.manual_seed(0)
    config = DetectionConfig(**({"norm": "batch", "anchor_sizes": (8, 16, 24), "pooled": 8} | options))
    detector = build_detector(build_model(name), config, classes=2, normalize=Normalize(MEAN)).train()
    images = [torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8) for _ in range(2)]
    target = {
        "boxes": torch.tensor([[4.0, 4, 24, 20]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 48, 64, dtype=torch.uint8),
    }
    losses = detector(images, [target, target])
    sum(losses.values()).backward()
    without = [n for n, p in detector.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == [] and set(losses) >= {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}


def test_what_can_t_be_is_said():
    with pytest.raises(UserError, match="anchor_sizes must name 4 sizes"):
        build_detector(build_model("cifar-resnet8"), DetectionConfig(form="fpn"), classes=1, normalize=Normalize(MEAN))
    with pytest.raises(ConfigError, match=r"detection.context is for the form c4"):
        DetectionConfig(form="fpn", context=True)
    with pytest.raises(ConfigError, match=r"detection.anchor_sizes must be positive numbers, not \[\]"):
        DetectionConfig(anchor_sizes=())
    with pytest.raises(ConfigError, match=r"detection.least_score must lie in"):
        DetectionConfig(least_score=1)
