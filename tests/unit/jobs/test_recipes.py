"""The kept costs of the recipes' networks against counting them again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import resnet_pipeline.recipes
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.recipes import depth_against_vgg, kept_costs, network_cost, recipe_row
from resnet_pipeline.models import depth_of
from resnet_pipeline.models.complexity import complexity_table
from resnet_pipeline.recipes import get_recipe, recipe_names

CLASSES = {"imagenet": 1000, "cifar10": 10, "digits": 10}
KEPT = Path(resnet_pipeline.recipes.__file__).with_name("costs.json")


def counted() -> dict[str, dict[str, int]]:
    (vgg,) = complexity_table(["vgg19"])
    costs = {"vgg19": (vgg.depth, vgg.cost)}
    for name in recipe_names():
        config = get_recipe(name)
        classes = CLASSES[name.split("/")[0].split("-")[0]]
        costs[name] = depth_of(config.model.name), network_cost(config, classes=classes)
    return {
        name: {"depth": depth, "parameters": cost.parameters, "multiply_adds": cost.multiply_adds}
        for name, (depth, cost) in costs.items()
    }


@pytest.mark.slow
def test_the_kept_costs_are_those_that_counting_gives():
    assert kept_costs() == counted(), f"if the change is meant: python tests/unit/jobs/{Path(__file__).name}"


def test_152_layers_are_eight_times_deeper_than_vgg_and_less_complex():
    for part in ("152 layers, 8.0 times VGG-19's 19", "11.3 billion", "0.57 times", "19.6"):
        assert part in depth_against_vgg()


def test_an_unknown_recipe_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'cifar10/resnet110'"):
        recipe_row("cifar10/resnet101")


if __name__ == "__main__":
    lines = [f" {json.dumps(name)}: {json.dumps(cost)}" for name, cost in counted().items()]
    KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
