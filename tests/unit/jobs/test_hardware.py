"""Hours on hardware that is not here: a published rate gives back what was published."""

from __future__ import annotations

import pytest

from resnet_pipeline.config import ConfigError
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.hardware import parse_hardware, plan_of, training_seconds
from resnet_pipeline.recipes import get_recipe

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


def test_gpus_that_can_t_share_the_batch_are_refused(workspace, digits):
    with pytest.raises(ConfigError, match="workers=16 can't share a batch of 256"):
        plan_of(workspace, get_recipe("imagenet/resnet152"), "digits", "16xa100", None)
