"""The kept costs of the recipes' networks against counting them again."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

import resnet_pipeline.recipes
from resnet_pipeline.config import ModelConfig
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.recipes import depth_against_vgg, idle_gpus, kept_costs, network_cost, recipe_row, recipe_rows
from resnet_pipeline.models import build_model, depth_of
from resnet_pipeline.models.complexity import Complexity, complexity, complexity_table
from resnet_pipeline.recipes import get_recipe, recipe_names

CLASSES = {"imagenet": 1000, "cifar10": 10, "digits": 10}
KEPT = Path(resnet_pipeline.recipes.__file__).with_name("costs.json")


def counted() -> dict[str, dict[str, int]]:
    (vgg,) = complexity_table(["vgg19"])
    costs = {"vgg19": (vgg.depth, vgg.cost)}
    for name in recipe_names():
        config = get_recipe(name)
        family = name.split("/")[0].split("-")[0]
        classes = CLASSES["cifar10" if config.model.name.startswith("cifar-") else "imagenet"]
        assert family not in CLASSES or classes == CLASSES[family]
        costs[name] = depth_of(config.model.name), _shapes_only(config.model, config.augment.crop, classes)
    return {
        name: {"depth": depth, "parameters": cost.parameters, "multiply_adds": cost.multiply_adds}
        for name, (depth, cost) in costs.items()
    }


@functools.cache  # many recipes have the same network
def _shapes_only(model: ModelConfig, size: int, classes: int) -> Complexity:
    with torch.device("meta"):  # many of these are large: nothing is computed
        network = build_model(model.name, num_classes=classes, shortcut=model.shortcut, stride=model.stride)
    return complexity(network, size)


@pytest.mark.parametrize("name", ["cifar10/resnet20", "imagenet/resnet18"])
def test_a_cost_that_is_computed_is_the_kept_one(name):
    cost, kept = network_cost(get_recipe(name), classes=CLASSES[name.split("/")[0]]), kept_costs()[name]
    assert (cost.parameters, cost.multiply_adds) == (kept["parameters"], kept["multiply_adds"])


@pytest.mark.slow
def test_the_kept_costs_are_those_that_counting_gives():
    assert kept_costs() == counted(), f"if the change is meant: python tests/unit/jobs/{Path(__file__).name}"


def test_gpus_that_a_recipe_leaves_idle_are_named_and_what_would_use_them():
    idle = idle_gpus(get_recipe("imagenet/resnet50"), workers=8, gpus=64)
    assert idle.startswith("8 of 64 GPUs will train: imagenet/resnet50 has 8 micro-batches of 32 images")
    assert "All would in imagenet-2k/resnet50, which is not the paper's" in idle
    assert "All would" not in idle_gpus(get_recipe("imagenet/plain34"), workers=8, gpus=64)
    assert "All would" not in idle_gpus(get_recipe("cifar10/resnet20"), workers=2, gpus=16)


def test_recipes_for_gpus_keep_each_of_them_busy():
    for gpus in (8, 16, 64, 256):
        assert {row.recipe for row in recipe_rows(gpus)} == {
            name for name in recipe_names() if get_recipe(name).micro_batches % gpus == 0
        }
    with pytest.raises(UserError, match="no recipe keeps 7 GPUs busy"):
        recipe_rows(7)


def test_152_layers_are_eight_times_deeper_than_vgg_and_less_complex():
    for part in ("152 layers, 8.0 times VGG-19's 19", "11.3 billion", "0.57 times", "19.6"):
        assert part in depth_against_vgg()


def test_an_unknown_recipe_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'cifar10/resnet110'"):
        recipe_row("cifar10/resnet101")


if __name__ == "__main__":
    lines = [f" {json.dumps(name)}: {json.dumps(cost)}" for name, cost in counted().items()]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
