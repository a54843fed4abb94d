"""A trained network in the form that computes fastest: batch norm folded into the convolutions, activations fused.

In evaluation batch norm is a scale and a shift per channel, which the convolution before it can carry. On a CPU each
convolution then adds the shortcut and applies the nonlinearity in one pass over its output: oneDNN's fused
convolution, the one that PyTorch's compiler emits. On other devices these remain passes of their own.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resnet_pipeline.models.blocks import BasicBlock, Bottleneck
from resnet_pipeline.models.highway import HighwayBlock
from resnet_pipeline.models.normalize import Classifier
from resnet_pipeline.models.resnet import ResNet


class FoldedResNet(nn.Module):
    """The network with its batch norms folded: the same features and logits, except for rounding.

    Relative to the largest logit they differ by some 1e-6 (tests/unit/models/test_fold_batch_norm.py). Later
    changes of the convolutions and batch norms that it was made from do not reach it.
    """

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.architecture = network.architecture
        self.stem = _Convolution(network.conv1, network.bn1)
        self.maxpool = network.maxpool
        blocks = [block for name in network.stage_names for block in network.get_submodule(name).children()]
        self.blocks = nn.Sequential(*(_Block(cast("BasicBlock | Bottleneck", block)) for block in blocks))
        self.fc = network.fc

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last convolutional map float [N, C, h, w]."""
        found: torch.Tensor = self.blocks(self.maxpool(self.stem(x, relu=True)))
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits float [N, classes] for images float [N, 3, H, W]."""
        logits: torch.Tensor = self.fc(self.features(x).mean(dim=(2, 3)))
        return logits


def fold_batch_norm(classifier: Classifier) -> Classifier:
    """Return a classifier in evaluation mode whose network is folded.

    Highway networks, and networks that are no ``ResNet``, stay as they are.

    Example: ``fold_batch_norm(member.classifier)(images)``
    """
    network = classifier.network
    if not isinstance(network, ResNet) or network.architecture.block is HighwayBlock:
        return classifier.eval()
    return Classifier(classifier.normalize, FoldedResNet(network)).eval()


class _Convolution(nn.Module):
    """A convolution with its batch norm: W x + b, then + shortcut, then relu, as the caller says."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        with torch.no_grad():
            fused = fuse_conv_bn_eval(convolution.eval(), norm.eval())
        assert fused.bias is not None
        self.register_buffer("weight", fused.weight.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", fused.bias.detach())
        self.stride, self.padding = cast("tuple[int, int]", fused.stride), cast("tuple[int, int]", fused.padding)

    def forward(self, x: torch.Tensor, *, relu: bool, shortcut: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve; ``shortcut`` is overwritten if it is given."""
        if x.device.type == "cpu" and _FUSED:
            return self._fused(x, relu, shortcut)
        out = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        if shortcut is not None:
            out += shortcut
        return F.relu_(out) if relu else out

    def _fused(self, x: torch.Tensor, relu: bool, shortcut: torch.Tensor | None) -> torch.Tensor:
        options = [self.weight, self.bias, list(self.padding), list(self.stride), [1, 1], 1]
        after = "relu" if relu else "none"
        out: torch.Tensor
        if shortcut is None:
            out = torch.ops.mkldnn._convolution_pointwise(x, *options, after, [], "")
        else:
            fused = torch.ops.mkldnn._convolution_pointwise_.binary
            out = fused(shortcut, x, *options, "add", 1.0, after if relu else None, [], "")
        return out


# not a public operator: if a build of PyTorch lacks it, the plain convolution serves
_FUSED = hasattr(torch.ops.mkldnn, "_convolution_pointwise_")


class _Block(nn.Module):
    """relu(F(x) + shortcut(x)); relu(F(x)) in a plain network."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            pairs.append((block.conv3, block.bn3))
        self.convolutions = nn.ModuleList(_Convolution(*pair) for pair in pairs)
        self.shortcut = block.downsample
        if isinstance(block.downsample, nn.Sequential):
            self.shortcut = _Convolution(*cast("tuple[nn.Conv2d, nn.BatchNorm2d]", tuple(block.downsample)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        *first, last = self.convolutions
        for convolution in first:
            out = convolution(out, relu=True)
        result: torch.Tensor
        if self.shortcut is None:
            result = last(out, relu=True)
            return result
        carried = self.shortcut(x, relu=False) if isinstance(self.shortcut, _Convolution) else self.shortcut(x)
        # x is not needed again, so an identity's memory takes the sum
        result = last(out, relu=True, shortcut=carried)
        return result
