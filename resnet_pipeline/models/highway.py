"""Highway blocks (Srivastava, Greff, Schmidhuber, "Highway Networks", 2015): shortcuts with a gate that data closes.

The paper's section 2 holds them against identity shortcuts, "never closed". Here a gate stands in each two-layer
block of the CIFAR-10 architecture, so that a highway network and its residual twin differ in the gates alone.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from resnet_pipeline.models.blocks import BasicBlock, Shortcut, Stride

GATE_BIAS = -2.0
"""What a gate's bias starts at: sigmoid(−2) = 0.12, so that at first a block mostly carries its input.

Srivastava et al., section 2.2, advise a negative value such as −1 or −3, whatever initialises the other weights;
without it deep highway networks do not start to learn.
"""


class HighwayBlock(BasicBlock):
    """relu(F(x)·T(x) + shortcut(x)·(1 − T(x))), T = sigmoid of a 3×3 convolution of x with a bias."""

    def __init__(self, inputs: int, width: int, stride: int, shortcut: Shortcut, placement: Stride = "v1") -> None:
        super().__init__(inputs, width, stride, shortcut, placement)
        self.gate = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, inputs, H, W] to [N, width, H / stride, W / stride]."""
        if self.downsample is None:
            raise ValueError("a highway block needs a shortcut")
        gate = torch.sigmoid(self.gate(x))
        carried = self.downsample(x)
        return F.relu(carried + gate * (self.residual(x) - carried), inplace=self.training)
