"""Recipes: complete typed configs by name, ``imagenet/resnet152``, ``cifar10/resnet20``, ``digits/resnet20``.

``imagenet`` and ``cifar10`` are the paper's, the others are not: ``finetune`` begins with other networks' weights,
``voc``, ``coco`` and ``scenes`` train detectors, ``ilsvrc-loc`` the boxes of classes,
``imagenet-fast``, ``imagenet-short`` and ``cifar10-fast`` are of today, ``imagenet-512``, ``-2k``, ``-8k`` and ``-32k``
for 16 to 512 GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from resnet_pipeline.config import RunConfig
from resnet_pipeline.config_io import flat, with_overrides
from resnet_pipeline.errors import UserError, did_you_mean
from resnet_pipeline.recipes import cifar10, detection, digits, finetune, imagenet, localisation
from resnet_pipeline.records import JsonObject

_FAMILIES: dict[str, tuple[tuple[str, ...], Callable[[str], RunConfig]]] = {
    "imagenet": (imagenet.NETWORKS, imagenet.faithful),
    "cifar10": (cifar10.NETWORKS, cifar10.faithful),
    "imagenet-fast": (imagenet.FAST_NETWORKS, imagenet.fast),
    "imagenet-short": (imagenet.FAST_NETWORKS, imagenet.short),
    **{
        f"imagenet-{size}": (imagenet.LARGE_NETWORKS, partial(imagenet.large, batch=batch))
        for batch, size in imagenet.LARGE_BATCHES.items()
    },
    "imagenet-32k": (imagenet.LARGE_NETWORKS, imagenet.largest),
    "cifar10-fast": (cifar10.FAST_NETWORKS, cifar10.fast),
    "digits": (digits.NETWORKS, digits.small),
    "finetune": (finetune.NETWORKS, finetune.short),
    "voc": (detection.VOC_NETWORKS, detection.voc),
    "coco": (detection.COCO_NETWORKS, detection.coco),
    "ilsvrc-loc": (localisation.NETWORKS, localisation.faithful),
    "scenes": (detection.SCENES_NETWORKS, detection.scenes),
}


def recipe_names() -> list[str]:
    """Return the names of all recipes.

    >>> "digits/resnet8" in recipe_names()
    True
    """
    return [f"{family}/{network}" for family, (networks, _) in _FAMILIES.items() for network in networks]


def get_recipe(name: str) -> RunConfig:
    """Return the recipe of this name; UserError with the nearest known name if there is none.

    >>> get_recipe("imagenet/resnet152").batch
    256
    """
    family, _, network = name.partition("/")
    networks, build = _FAMILIES.get(family, ((), None))
    if build is None or network not in networks:
        names = recipe_names()
        near = did_you_mean(name, names)
        raise UserError(f"unknown recipe {name!r}{near or '; the recipes are ' + ', '.join(names)}")
    return build(network)


def recipes_for(gpus: int) -> list[str]:
    """Return the names of the recipes that keep this many GPUs busy: their micro-batches can be shared by so many.

    Those with the smallest batch come first. Raises UserError for a number below 1.

    >>> recipes_for(64)[0]
    'imagenet-2k/resnet50'
    """
    if gpus < 1:
        raise UserError(f"a number of GPUs must be at least 1, not {gpus}")
    good = [name for name in recipe_names() if get_recipe(name).micro_batches % gpus == 0]
    return sorted(good, key=lambda name: get_recipe(name).batch)


def changes_of(config: RunConfig) -> JsonObject:
    """Return the changes that make this config of its recipe, as `with_overrides` takes them.

    ``steps`` and ``seed`` come first; what `with_overrides` stretches with the steps is not among the changes. Raises
    UserError if this version has no such recipe.

    >>> changes_of(with_overrides(get_recipe("cifar10/resnet20"), {"steps": 640, "optim.lr": 0.2}))
    {'steps': 640, 'optim.lr': 0.2}
    """
    recipe, wanted = get_recipe(config.recipe), flat(config)
    short = {key: wanted[key] for key in ("steps", "seed") if wanted[key] != getattr(recipe, key)}
    stretched = flat(with_overrides(recipe, short))
    return short | {key: value for key, value in wanted.items() if value != stretched[key]}
