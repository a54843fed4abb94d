"""Hours on hardware that is not here: a published rate gives back what was published."""

from __future__ import annotations

import pytest
import torch

from resnet_pipeline.config import ConfigError
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.jobs.hardware import parse_hardware, plan_of, plans_of_test, training_seconds
from resnet_pipeline.models import build_model
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.workspace import Workspace

FAST = get_recipe("imagenet-fast/resnet50")


# NVIDIA's DeepLearningExamples, ResNet-50 v1.5 for PyTorch, training performance results
@pytest.mark.parametrize(
    ("hardware", "precision", "images_per_second"),
    [
        ("1xA100", "bf16", 2470), ("8xa100", "bf16", 16621), ("1xa100", "tf32", 938), ("8xa100", "tf32", 7248),
        ("1xv100", "float32", 367), ("8xv100", "float32", 2855), ("1xv100", "bf16", 1200), ("8 x v100", "bf16", 8322),
        ("64xa100", "bf16", 8 * 16621),
    ],
)  # fmt: skip
def test_a_published_rate_comes_back(hardware, precision, images_per_second):
    config = with_overrides(FAST, {"precision": precision, "micro_batch": 16})
    seconds = training_seconds(config, parse_hardware(hardware))
    assert config.steps * config.batch / seconds == pytest.approx(images_per_second)


def test_more_gpus_are_faster_and_lose_something_and_deeper_networks_are_slower():
    config = with_overrides(FAST, {"micro_batch": 16})
    rates = {n: 1 / training_seconds(config, parse_hardware(f"{n}xa100")) for n in (1, 2, 4, 8)}
    assert rates[1] < rates[2] < rates[4] < rates[8] < 8 * rates[1] and 2 * rates[1] > rates[2]
    hours = [
        training_seconds(get_recipe(f"imagenet/resnet{d}"), parse_hardware("8xh100")) for d in (18, 34, 50, 101, 152)
    ]
    assert hours == sorted(hours)


@pytest.mark.parametrize("text", ["8", "h100", "0xh100", "8xtpu", "-1xh100", "8xh100x2", "9999999xh100"])
def test_hardware_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--hardware must be a number and one of v100, a100, h100, as 8xh100"):
        parse_hardware(text)


def test_a_detector_s_time_is_not_known():
    with pytest.raises(UserError, match="trains a detector, and the published rates are a classifier's"):
        training_seconds(get_recipe("coco/maskrcnn-resnet50-fpn"), parse_hardware("8xa100"))


def test_gpus_that_can_t_share_the_batch_are_refused(workspace, digits):
    with pytest.raises(ConfigError, match="workers=16 can't share a batch of 256"):
        plan_of(workspace, get_recipe("imagenet/resnet152"), "digits", "16xa100", None)


@pytest.fixture
def photos(tmp_path, photo_set) -> Workspace:
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "photos").symlink_to(photo_set.path)
    return Workspace(tmp_path)


@pytest.fixture
def resnet50(tmp_path) -> str:
    """Return weights of ResNet-50 v1.5 for two classes."""
    torch.save(build_model("resnet50", num_classes=2).state_dict(), tmp_path / "resnet50.pth")
    return f"resnet50={tmp_path / 'resnet50.pth'}"


def planned(workspace, model, protocol, **given):
    test = TestSpec(dataset="photos", protocol=protocol, **given)
    (plan,) = plans_of_test(workspace, [model], test, "1xv100", 2.0)
    return plan


def test_a_test_takes_a_third_of_training_s_time_for_each_view(photos, resnet50, photo_set: Dataset):
    center = planned(photos, resnet50, "center")
    assert (center.views, center.images, center.hardware) == (1, len(photo_set.splits["val"]), "1xv100")
    # the published rate in float32 is 367 images/s, forward and backward; 998 classes fewer make no difference here
    assert 3600 * center.hours == pytest.approx(center.images / (3 * 367), rel=1e-3)
    assert center.cost == 2.0 * center.hours
    ten = planned(photos, resnet50, "10-crop")
    assert (ten.views, ten.hours) == (10, pytest.approx(10 * center.hours))
    assert planned(photos, resnet50, "10-crop", images=2).hours == pytest.approx(ten.hours * 2 / ten.images)


def test_a_multi_scale_test_is_planned_by_its_pixels(photos, resnet50, photo_set: Dataset):
    split, once = photo_set.splits["val"], planned(photos, resnet50, "multi-scale", scales=(224,))
    # of a whole image whose shorter side is 224, and of its mirror image
    longer = [max(size) / min(size) for size in zip(split.width, split.height, strict=True)]
    assert once.views == pytest.approx(2 * sum(longer) / len(longer), rel=0.01)
    assert planned(photos, resnet50, "multi-scale", scales=(448,)).hours == pytest.approx(4 * once.hours, rel=0.01)


def test_a_test_that_could_not_be_run_is_not_planned(photos, resnet50):
    with pytest.raises(UserError, match="has no split 'tset'"):
        planned(photos, resnet50, "center", split="tset")
    with pytest.raises(UserError, match="--hardware must be a number"):
        plans_of_test(photos, [resnet50], TestSpec(dataset="photos", protocol="center"), "8xtpu", None)
