"""How a run differs from the paper, as sentences for its model card; docs/DEVIATIONS.md has the reasons and costs."""

from __future__ import annotations

from collections.abc import Iterator

from resnet_pipeline.config import RunConfig
from resnet_pipeline.config_io import to_dict
from resnet_pipeline.errors import UserError
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.records import JsonObject

_ALWAYS = (
    "Training crops are cut from the original in whole pixels and resized, instead of resizing and then cropping.",
    "Images are shrunk with an antialiasing filter; the authors' resizing is not published in detail.",
    "The mean image comes from at most 10,000 evenly spaced training images.",
)


def deviations_of(config: RunConfig) -> list[str]:
    """Return the differences that a config brings with it, and those that every run of this program has.

    Example: ``deviations_of(get_recipe("imagenet-fast/resnet50"))``
    """
    return [*_of_the_config(config), *_ALWAYS, "The project's docs/DEVIATIONS.md has the whole list with reasons."]


def _of_the_config(config: RunConfig) -> Iterator[str]:
    try:
        changes = sorted(_changes(to_dict(get_recipe(config.recipe)), to_dict(config)))
    except UserError:
        yield f"The recipe {config.recipe} is not one of this version of the program."
    else:
        if changes:
            yield f"Changed from the recipe {config.recipe}: {', '.join(changes)}."
    if not config.recipe.startswith(("imagenet/", "cifar10/")):
        yield f"{config.recipe} is no experiment of the paper: another dataset, its networks and its method."
    if config.model.stride == "v1.5":
        yield "Bottlenecks have their stride on the 3×3 convolution (v1.5), the authors' on the first 1×1."
    if config.model.mean == "channel":
        yield "The mean colour is subtracted, not the mean image."
    if config.model.last_gamma is not None:
        yield f"Each block's last batch norm starts with the scale {config.model.last_gamma:g}, not 1."
    if config.model.initial_weights is not None:
        head = "a random classifier" if config.model.initial_head == "fresh" else "their classifier"
        yield f"Training begins with weights of another training ({config.model.initial_weights[:12]}…) and {head}."
    if config.augment.kind == "random-resized-crop":
        yield "Crops are torchvision's RandomResizedCrop, not the paper's scale augmentation."
    decayed = "all parameters" if config.optim.decay_norm else "the weights of convolutions and classifier alone"
    yield f"Weight decay is on {decayed}: the paper does not say on what."
    if config.schedule.kind == "plateau":
        most = config.schedule.most_drops
        floor = "" if most is None else f"; the rate drops {most} times at most"
        yield (
            f"A plateau of the error is: not better by {config.schedule.threshold} points in "
            f"{config.schedule.patience} evaluations, {config.eval_every:,} iterations apart{floor}."
        )
    if config.schedule.kind == "cosine":
        yield "The learning rate follows half a cosine, not steps."


def _changes(before: JsonObject, after: JsonObject, prefix: str = "") -> Iterator[str]:
    for key in after.keys() | before.keys():
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f"{prefix}{key}.")
        elif old != new and f"{prefix}{key}" != "seed":
            yield f"{prefix}{key} {old} → {new}"
