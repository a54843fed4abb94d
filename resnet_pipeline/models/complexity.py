"""Parameters and multiply-adds, counted layer by layer; the paper counts convolutions and the classifier (Table 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from resnet_pipeline.errors import UserError


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
