"""Every network of the paper and the VGG networks it is held against: depth, parameters, multiply-adds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torchvision
from torch import nn

from resnet_pipeline.models.complexity import Complexity, complexity
from resnet_pipeline.models.registry import build_model, depth_of, model_names

VGG_NAMES = ("vgg16", "vgg19")
"""Simonyan and Zisserman, 2014, as torchvision builds them."""


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
    """
    return [_row(name) for name in (names if names is not None else (*model_names(), *VGG_NAMES))]


def depth_against_vgg() -> str:
    """Return the paper's sentence (section 1) in figures: eight times deeper than VGG nets, lower complexity."""
    deep, vgg = complexity_table(["resnet152", "vgg19"])
    return (
        f"ResNet-152 has {deep.depth} layers, {deep.depth / vgg.depth:.1f} times VGG-19's {vgg.depth}, and takes "
        f"{deep.cost.multiply_adds / 1e9:.1f} billion multiply-adds, "
        f"{deep.cost.multiply_adds / vgg.cost.multiply_adds:.2f} times VGG-19's {vgg.cost.multiply_adds / 1e9:.1f}"
    )


def format_complexity_table(rows: Iterable[ComplexityRow]) -> str:
    """Return the rows as aligned text: millions of parameters, billions of multiply-adds."""
    lines = [f"{'network':<18}{'layers':>7}{'input':>7}{'parameters':>12}{'multiply-adds':>15}"]
    for row in rows:
        parameters, multiply_adds = row.cost.parameters / 1e6, row.cost.multiply_adds / 1e9
        lines.append(f"{row.name:<18}{row.depth:>7}{row.size:>7}{parameters:>10.2f} M{multiply_adds:>13.3f} G")
    return "\n".join(lines)


def _row(name: str) -> ComplexityRow:
    with torch.device("meta"):  # shapes are enough: no memory, no arithmetic
        if name in VGG_NAMES:
            network: nn.Module = torchvision.models.get_model(name, weights=None)
            depth = int(re.sub(r"\D", "", name))
        else:
            network, depth = build_model(name), depth_of(name)
        size = 32 if name.startswith("cifar-") else 224
        return ComplexityRow(name, depth, size, complexity(network, size))
