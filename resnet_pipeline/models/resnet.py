"""Plain, residual and highway networks from a table of stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from resnet_pipeline.models.blocks import Block, Shortcut, Stride, conv
from resnet_pipeline.models.highway import GATE_BIAS, HighwayBlock
from resnet_pipeline.models.recompute import Stage

Pooling = Literal["pytorch", "caffe"]
"""The first max-pooling, 3×3 with stride 2: ``pytorch`` pads by one, ``caffe`` pads nothing and rounds sizes up.

From a map of even size both make half of it, but their windows lie one pixel apart; the authors' release has Caffe's.
"""


@dataclass(frozen=True)
class Architecture:
    """A network as data: first layers, block, (blocks, width) of each stage; stages after the first halve the map."""

    stem: Literal["imagenet", "cifar"]
    block: Block
    stages: Sequence[tuple[int, int]]
    shortcut: Shortcut
    stride: Stride = "v1"
    pooling: Pooling = "pytorch"
    gate_bias: float = GATE_BIAS


class ResNet(nn.Module):
    """A network of the paper: logits float [N, num_classes] for images float [N, 3, H, W].

    Initialised as He et al., 2015 ("Delving Deep into Rectifiers"), from PyTorch's global generator. With
    ``checkpointing`` > 0 training keeps the activations of every so many blocks only (``models.recompute``).

    Example: ``build_model("resnet50").layer4``
    """

    def __init__(self, architecture: Architecture, *, num_classes: int, checkpointing: int = 0) -> None:
        super().__init__()
        self.architecture = architecture
        first = architecture.stages[0][1]
        if architecture.stem == "imagenet":
            self.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False)
            caffe = architecture.pooling == "caffe"
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=0 if caffe else 1, ceil_mode=caffe)
        else:
            self.conv1 = conv(3, first, 3)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(first)
        channels = first
        self.stage_names = [f"layer{i}" for i in range(1, len(architecture.stages) + 1)]
        for i, (name, (count, width)) in enumerate(zip(self.stage_names, architecture.stages, strict=True)):
            blocks = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(architecture.block(channels, width, stride, architecture.shortcut, architecture.stride))
                channels = width * architecture.block.expansion
            self.add_module(name, Stage(*blocks, segment=checkpointing))
        self.fc = nn.Linear(channels, num_classes)
        self._frozen: list[nn.Module] = []
        self._initialise()

    def freeze(self, stages: int | None = None, *, norm_eval: bool = False) -> None:
        """Keep first layers as they are: with ``stages`` 0 the stem, with k also the stages up to k; None: none.

        No gradient of them is computed, and their batch norm stays in evaluation mode, whatever `train` says; with
        ``norm_eval`` that of all layers does, whose scales and shifts are learned. What stays has momentum 0.

        Example: ``build_model("resnet50").freeze(2, norm_eval=True)``
        """
        parts = [] if stages is None else [self.conv1, self.bn1, *map(self.get_submodule, self.stage_names[:stages])]
        for part in parts:
            part.requires_grad_(False)
        norms = [
            m for part in ([self] if norm_eval else parts) for m in part.modules() if isinstance(m, nn.BatchNorm2d)
        ]
        for norm in norms:
            norm.momentum = 0.0
        self._frozen = [*parts, *norms]
        self.train(self.training)

    def train(self, mode: bool = True) -> ResNet:
        """Set training mode or evaluation mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last convolutional map float [N, C, h, w]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=self.training))
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits: global average pooling of the features, then the linear classifier."""
        logits: torch.Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return logits

    def _initialise(self) -> None:
        if self.fc.weight.is_meta:
            return  # no numbers to draw, and PyTorch would import its compiler for it, some two seconds
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # fan_in is the derivation's forward case; the authors' Caffe "msra" filler defaults to it too
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if isinstance(module, HighwayBlock) and module.gate.bias is not None:
                nn.init.constant_(module.gate.bias, self.architecture.gate_bias)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
