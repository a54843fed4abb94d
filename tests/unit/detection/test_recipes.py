"""The detectors' recipes: the paper's settings (appendix A), torchvision's of today, and one that is built whole."""

from __future__ import annotations

import pytest
import torch
import torchvision

from resnet_pipeline.detection import weight_bytes
from resnet_pipeline.detection.networks import build_detector
from resnet_pipeline.models import Normalize, build_model
from resnet_pipeline.recipes import get_recipe, recipe_names

FAITHFUL = [f"{family}/fasterrcnn-resnet{depth}-c4" for family in ("voc", "coco") for depth in (50, 101)]
OF_TODAY = [name for name in recipe_names() if name.endswith("-fpn")]


@pytest.mark.parametrize("name", FAITHFUL)
def test_the_paper_s_are_appendix_a_s(name):
    config = get_recipe(name)
    detection, optim, schedule = config.detection, config.optim, config.schedule
    assert (detection.form, detection.norm, detection.masks, detection.context) == ("c4", "frozen", False, False)
    assert (config.augment.shorter_side, config.views.resize, detection.longest) == ((600, 600), 600, 1000)
    assert (detection.sampled_anchors, detection.sampled_regions, detection.proposals) == (256, 128, 300)
    assert (detection.anchor_sizes, detection.anchor_ratios) == ((128, 256, 512), (0.5, 1.0, 2.0))
    assert (optim.lr, optim.momentum, optim.weight_decay) == (0.001, 0.9, 0.0005)
    on_coco = (config.batch, config.micro_batches, schedule.boundaries, config.steps)
    assert on_coco == ((16, 8, (240_000,), 320_000) if name.startswith("coco") else (2, 2, (60_000,), 80_000))
    assert (schedule.kind, schedule.factor, config.model.stride) == ("step", 0.1, "v1")


@pytest.mark.parametrize("depth", [50, 101])
def test_the_r_cnn_s_are_appendix_c_s(depth):
    config = get_recipe(f"ilsvrc-loc/rcnn-resnet{depth}")
    assert (config.regions.proposals, config.regions.norm, config.localisation) == (200, "frozen", None)
    assert (config.augment.kind, config.augment.crop, config.batch) == ("region", 224, 256)
    layers = 2048 * 5 * 1000 + 5 * 1000  # a score and four sides for each class
    backbone = sum(p.numel() for p in build_model(f"resnet{depth}").parameters() if p.ndim == 4)
    assert weight_bytes(config, classes=1000) == 4 * (layers + backbone)


def test_the_disk_of_a_detector_is_counted_from_its_own_weights():
    config = get_recipe("coco/fasterrcnn-resnet50-fpn")
    with torch.device("meta"):
        theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=81
        )
    # our batch norm is frozen: its scales and shifts are no parameters
    norms = [module for module in theirs.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    trained = [p for p in theirs.parameters() if not any(p is own for norm in norms for own in norm.parameters())]
    assert weight_bytes(config, classes=80) == 4 * sum(p.numel() for p in trained)
    localiser = get_recipe("ilsvrc-loc/resnet50")  # nine anchors with a score and four sides for each class
    layers = 2048 * 9 * 5 * 1000 + 9 * 5 * 1000
    backbone = sum(p.numel() for name, p in build_model("resnet50").named_parameters() if "conv" in name) + sum(
        p.numel() for name, p in build_model("resnet50").named_parameters() if "downsample.0" in name
    )
    assert weight_bytes(localiser, classes=1000) == 4 * (layers + backbone)


@pytest.mark.parametrize("name", OF_TODAY)
def test_torchvision_s_are_26_epochs_of_16_images_at_800_pixels(name):
    config = get_recipe(name)
    images = {"voc": 16_551, "coco": 117_266}[name.split("/")[0]]
    assert config.steps * config.batch == pytest.approx(26 * images, rel=1e-4)
    assert [b * config.batch / images for b in config.schedule.boundaries] == pytest.approx([16, 22], rel=1e-3)
    assert (config.optim.lr, config.optim.weight_decay, config.views.resize, config.detection.longest) == (
        0.02, 1e-4, 800, 1333,
    )  # fmt: skip
    assert config.detection.masks == ("maskrcnn" in name)


@pytest.mark.parametrize("name", ["coco/maskrcnn-resnet50-fpn", "scenes/maskrcnn-resnet8-c4"])
def test_what_a_recipe_names_can_be_built(name):
    config = get_recipe(name)
    with torch.device("meta"):
        network = build_model(config.model.name, num_classes=3)
        detector = build_detector(network, config.detection, classes=3, normalize=Normalize(torch.zeros(3)))
    heads = detector.rcnn.roi_heads
    assert heads.has_mask() and heads.box_predictor.cls_score.out_features == 4
