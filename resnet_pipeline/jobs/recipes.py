"""The table of recipes: what each network is and what the paper got with it."""

from __future__ import annotations

from typing import Any

import torch

from resnet_pipeline.config import RunConfig
from resnet_pipeline.evaluation.paper import PUBLISHED
from resnet_pipeline.models import build_model, depth_of
from resnet_pipeline.models.complexity import Complexity, complexity
from resnet_pipeline.recipes import get_recipe, recipe_names

_CLASSES = {"imagenet": 1000, "cifar10": 10, "digits": 10}


def recipe_rows() -> list[dict[str, Any]]:
    """Return a row per recipe: depth, parameters, multiply-adds at the training crop, the paper's error and table."""
    return [_row(name) for name in recipe_names()]


def network_cost(config: RunConfig, *, classes: int) -> Complexity:
    """Return parameters and multiply-adds of a recipe's network at its training crop."""
    with torch.device("meta"):  # shapes are enough: no memory, no arithmetic
        network = build_model(
            config.model.name, num_classes=classes, shortcut=config.model.shortcut, stride=config.model.stride
        )
    return complexity(network, config.augment.crop)


def _row(name: str) -> dict[str, Any]:
    config = get_recipe(name)
    cost = network_cost(config, classes=_CLASSES[name.split("/")[0].split("-")[0]])
    published = PUBLISHED.get(name)
    return {
        "recipe": name,
        "network": config.model.name,
        "depth": depth_of(config.model.name),
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "input": config.augment.crop,
        "steps": config.steps,
        "batch": config.batch,
        "top1": published.top1 if published else None,
        "top5": published.top5 if published else None,
        "source": published.source if published else None,
    }
