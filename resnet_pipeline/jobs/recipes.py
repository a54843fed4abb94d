"""The table of recipes: what each network is and what the paper got with it.

Nothing here imports PyTorch but `network_cost`, in itself: the table is read far more often than it changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from resnet_pipeline.config import ModelConfig, RunConfig
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.paper import PUBLISHED
from resnet_pipeline.recipes import get_recipe, recipe_names, recipes_for

if TYPE_CHECKING:
    from resnet_pipeline.models.complexity import Complexity


@dataclass(frozen=True, kw_only=True)
class RecipeRow:
    """A recipe in one line.

    ``parameters`` and ``multiply_adds`` (of one image, ``input`` pixels wide and high) are the network's, ``depth`` its
    layers with weights. ``top1`` and ``top5`` are the paper's errors in percent, from the table that ``source`` names;
    None if it gives none.
    """

    recipe: str
    network: str
    depth: int
    parameters: int
    multiply_adds: int
    input: int
    steps: int
    batch: int
    top1: float | None = None
    top5: float | None = None
    source: str | None = None


def recipe_rows(gpus: int | None = None) -> list[RecipeRow]:
    """Return a row per recipe; with ``gpus`` of those alone that keep so many GPUs busy.

    Raises UserError if there is none.

    Example: ``[row.recipe for row in recipe_rows(gpus=64)]``
    """
    names = recipe_names() if gpus is None else recipes_for(gpus)
    if not names:
        raise UserError(f"no recipe keeps {gpus} GPUs busy: see the micro-batches of each with `recipes RECIPE`")
    return [recipe_row(name) for name in names]


def recipe_row(name: str) -> RecipeRow:
    """Return a recipe's row; UserError with the nearest known name if there is no such recipe.

    >>> recipe_row("imagenet/resnet152").depth
    152
    """
    config, published = get_recipe(name), PUBLISHED.get(name)
    cost = kept_costs()[name]
    return RecipeRow(
        recipe=name,
        network=config.model.name,
        depth=cost["depth"],
        parameters=cost["parameters"],
        multiply_adds=cost["multiply_adds"],
        input=config.augment.crop,
        steps=config.steps,
        batch=config.batch,
        top1=published.top1 if published else None,
        top5=published.top5 if published else None,
        source=published.source if published else None,
    )


def idle_gpus(config: RunConfig, workers: int, gpus: int) -> str:
    """Return a sentence on the GPUs that a run leaves idle, and what would use them; an empty one if there are none.

    >>> idle_gpus(get_recipe("imagenet/resnet50"), workers=8, gpus=8)
    ''
    """
    if workers >= gpus:
        return ""
    idle = (
        f"{workers} of {gpus} GPUs will train: {config.recipe} has {config.micro_batches} micro-batches of "
        f"{config.micro_batch} images, and each worker takes one at least, all the same number"
    )
    family, _, network = config.recipe.partition("/")
    larger = [name for name in recipes_for(gpus) if name.startswith("imagenet") and name.endswith(f"/{network}")]
    if not (family.startswith("imagenet") and larger):
        return idle
    return f"{idle}. All would in {larger[0]}, which is not the paper's (`resnet-pipeline recipes --gpus {gpus}`)"


def depth_against_vgg() -> str:
    """Return the paper's sentence (section 1) in figures: eight times deeper than VGG nets, lower complexity."""
    deep, vgg = kept_costs()["imagenet/resnet152"], kept_costs()["vgg19"]
    return (
        f"ResNet-152 has {deep['depth']} layers, {deep['depth'] / vgg['depth']:.1f} times VGG-19's {vgg['depth']}, and "
        f"takes {deep['multiply_adds'] / 1e9:.1f} billion multiply-adds, "
        f"{deep['multiply_adds'] / vgg['multiply_adds']:.2f} times VGG-19's {vgg['multiply_adds'] / 1e9:.1f}"
    )


@cache
def kept_costs() -> dict[str, dict[str, int]]:
    """Return depth, parameters and multiply-adds of each recipe's network, and of VGG-19, from a kept file.

    A test counts all of them again and compares; ``python tests/unit/jobs/test_recipes.py`` writes the file.
    """
    text = resources.files("resnet_pipeline.recipes").joinpath("costs.json").read_text()
    costs: dict[str, dict[str, int]] = json.loads(text)
    return costs


def network_cost(config: RunConfig, *, classes: int) -> Complexity:
    """Return parameters and multiply-adds of a recipe's network at its training crop.

    Example: ``network_cost(get_recipe("imagenet/resnet50"), classes=1000).parameters``
    """
    return _counted(config.model, config.augment.crop, classes)


@cache  # a report asks of each run, and of most several times
def _counted(model: ModelConfig, crop: int, classes: int) -> Complexity:
    import torch

    from resnet_pipeline.models import build_model
    from resnet_pipeline.models.complexity import complexity

    with torch.device("meta"):  # weights need no values
        network = build_model(
            model.name,
            num_classes=classes,
            shortcut=model.shortcut,
            stride=model.stride,
            pooling=model.pooling or "pytorch",
        )
    # one image is computed: the meta device's shapes would import PyTorch's compiler, four seconds more
    return complexity(network.to_empty(device="cpu"), crop)
