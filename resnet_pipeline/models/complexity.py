"""Parameters and multiply-adds of every network, and of VGG, counted layer by layer as in the paper (Table 1)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from resnet_pipeline.errors import UserError
from resnet_pipeline.models.registry import build_model, depth_of, model_names

VGG_NAMES = ("vgg16", "vgg19")
"""Simonyan and Zisserman, 2014, as torchvision builds them."""


@dataclass(frozen=True)
class StageCost:
    """What one top-level module (``conv1``, ``layer1`` …) costs."""

    name: str
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Complexity:
    """Learned parameters and multiply-adds of one image, in all and per stage."""

    parameters: int
    multiply_adds: int
    stages: tuple[StageCost, ...]


def complexity(network: nn.Module, size: int) -> Complexity:
    """Count a network at inputs of ``size`` × ``size`` pixels; on the meta device nothing is computed.

    Raises UserError for a size below 1.

    >>> with torch.device("meta"):
    ...     complexity(build_model("resnet50"), 224).multiply_adds
    3857973248
    """
    if size < 1:
        raise UserError(f"the size of an image must be at least 1 pixel, not {size}")
    counts: dict[str, int] = {}
    handles = [
        module.register_forward_hook(_counter(name, counts))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, size, size, device=device))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    stages = tuple(
        StageCost(
            name,
            sum(p.numel() for p in child.parameters()),
            sum(n for key, n in counts.items() if key == name or key.startswith(f"{name}.")),
        )
        for name, child in network.named_children()
    )
    parameters = sum(p.numel() for p in network.parameters())
    return Complexity(parameters, sum(counts.values()), tuple(s for s in stages if s.parameters))


def _counter(name: str, counts: dict[str, int]) -> Callable[[nn.Module, object, torch.Tensor], None]:
    def hook(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            per_output = math.prod(module.kernel_size) * module.in_channels // module.groups
            counts[name] = counts.get(name, 0) + output[0].numel() * per_output
        elif isinstance(module, nn.Linear):
            counts[name] = counts.get(name, 0) + output[0].numel() * module.in_features

    return hook


@dataclass(frozen=True)
class ComplexityRow:
    """A network's depth (layers with weights), and its cost for one image of ``size`` × ``size`` pixels."""

    name: str
    depth: int
    size: int
    cost: Complexity


def complexity_table(names: Iterable[str] | None = None) -> list[ComplexityRow]:
    """Return a row per network, by default all named ones and VGG; nothing is computed but shapes.

    Images have 224 × 224 pixels, for CIFAR networks 32 × 32. Raises UserError for an unknown name.

    >>> [(row.depth, row.cost.parameters) for row in complexity_table(["resnet50"])]
    [(50, 25557032)]
    """
    return [_row(name) for name in (names if names is not None else (*model_names(), *VGG_NAMES))]


def _row(name: str) -> ComplexityRow:
    with torch.device("meta"):  # shapes are enough: no memory, no arithmetic
        if name in VGG_NAMES:
            import torchvision  # with it comes PyTorch's compiler: four seconds that the other networks need not pay

            network: nn.Module = torchvision.models.get_model(name, weights=None)
            depth = int(re.sub(r"\D", "", name))
        else:
            network, depth = build_model(name), depth_of(name)
        size = 32 if name.startswith("cifar-") else 224
        return ComplexityRow(name, depth, size, complexity(network, size))
