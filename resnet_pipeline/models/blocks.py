"""Building blocks: F(x), F(x) + x, and the shortcuts that carry x (the paper, section 3).

Module names follow torchvision (``conv1 bn1 … downsample``), so that its weights load as they are. Batch norm stands
after each convolution and before the activation (section 3.4). Convolutions have no bias. In training the activation
overwrites its input, which nothing needs any more. In evaluation it does not, so that hooks may keep what they see.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

Shortcut = Literal["A", "B", "C", "none"]
"""A: zero-padding when dimensions grow; B: projection then; C: projection everywhere; none: a plain network."""
Stride = Literal["v1", "v1.5"]
"""Where a bottleneck halves the map: v1 on its first 1×1 (the paper), v1.5 on its 3×3 (fb.resnet.torch)."""


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that keeps the map's size at stride 1.

    >>> conv(3, 64, 7, stride=2)
    Conv2d(3, 64, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), bias=False)
    """
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class ZeroPadShortcut(nn.Module):
    """Option A: x subsampled by ``stride``, zeros for the ``outputs − inputs`` new channels; no parameters.

    The paper does not say where the zeros stand. Here half of them stand before x and half after it. The weights of
    the public CIFAR-10 networks give their published errors only this way. For training it makes no difference: any
    other place is a permutation of the channels, and the initial weights are identically distributed.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, inputs, H, W] to [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        # the maximum of one pixel: x[:, :, ::stride, ::stride], with a gradient that stays channels-last in memory
        return F.pad(F.max_pool2d(x, 1, self.stride), (0, 0, 0, 0, self.before, self.after))


def make_shortcut(option: Shortcut, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """Return the module that carries x around a block; None for a plain network.

    >>> make_shortcut("A", 16, 32, 2)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """
    if option == "none":
        return None
    same = inputs == outputs and stride == 1
    if option == "C" or (option == "B" and not same):
        return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    return nn.Identity() if same else ZeroPadShortcut(inputs, outputs, stride)


class BasicBlock(nn.Module):
    """relu(F(x) + shortcut(x)), F two 3×3 convolutions (figure 5, left); relu(F(x)) in a plain network."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut, placement: Stride = "v1") -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = make_shortcut(shortcut, inputs, width, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm that ends F."""
        return self.bn2

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Return F(x), before the addition and the last nonlinearity."""
        out: torch.Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=self.training)))
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, inputs, H, W] to [N, width, H / stride, W / stride]."""
        out = self.residual(x)
        return F.relu(out if self.downsample is None else out + self.downsample(x), inplace=self.training)


class Bottleneck(nn.Module):
    """relu(F(x) + shortcut(x)), F a 1×1, a 3×3 and a 1×1 convolution to four times the width (figure 5, right)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut, placement: Stride = "v1") -> None:
        super().__init__()
        first, second = (stride, 1) if placement == "v1" else (1, stride)
        self.conv1 = conv(inputs, width, 1, first)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, second)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = make_shortcut(shortcut, inputs, width * self.expansion, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The batch norm that ends F."""
        return self.bn3

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Return F(x), before the addition and the last nonlinearity."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=self.training)
        out = F.relu(self.bn2(self.conv2(out)), inplace=self.training)
        result: torch.Tensor = self.bn3(self.conv3(out))
        return result

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, inputs, H, W] to [N, 4·width, H / stride, W / stride]."""
        out = self.residual(x)
        return F.relu(out if self.downsample is None else out + self.downsample(x), inplace=self.training)


Block = type[BasicBlock] | type[Bottleneck]
"""The class of a network's blocks."""
