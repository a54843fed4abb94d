"""The constructed solution of section 1: a deeper network that computes what a shallower one does.

"There exists a solution by construction to the deeper model: the added layers are identity mapping, and the other
layers are copied from the learned shallower model." So a deeper network need not have a higher training error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from resnet_pipeline.errors import UserError
from resnet_pipeline.models.blocks import BasicBlock, Bottleneck
from resnet_pipeline.models.highway import HighwayBlock
from resnet_pipeline.models.resnet import ResNet


def deepen(shallow: ResNet, blocks: Sequence[int], *, checkpointing: int = 0) -> ResNet:
    """Return a network with ``blocks[i]`` blocks in stage i, whose outputs in evaluation equal the shallow one's.

    The shallow network's blocks come first in each stage, copies of their own; the added ones compute the identity. In
    residual networks with options A and B that is the last batch norm's zero scale, exact in training too. In plain
    and highway networks, and with option C, a path of layers must itself carry x: each 3×3 kernel is one in the middle,
    and its batch norm does nothing with its running statistics. In training it would normalise by the batch's.

    Raises UserError if a stage would lose blocks, or if the block can't carry x, as a plain bottleneck.

    >>> from resnet_pipeline.models import build_model
    >>> len(deepen(build_model("cifar-resnet8"), [2, 2, 2]).layer1)
    2
    """
    counts = [count for count, _ in shallow.architecture.stages]
    if len(blocks) != len(counts) or any(new < old for new, old in zip(blocks, counts, strict=True)):
        raise UserError(f"a deeper network than one of {counts} blocks per stage must have no fewer, not {[*blocks]}")
    stages = [(new, width) for new, (_, width) in zip(blocks, shallow.architecture.stages, strict=True)]
    architecture = replace(shallow.architecture, stages=stages)
    deep = ResNet(architecture, num_classes=shallow.fc.out_features, checkpointing=checkpointing)
    deep.load_state_dict(shallow.state_dict(), strict=False)  # the added blocks' tensors are missing there
    for name, count in zip(deep.stage_names, counts, strict=True):
        for block in list(deep.get_submodule(name).children())[count:]:
            _make_identity(block)
    return deep.to(shallow.fc.weight).train(shallow.training)


def _make_identity(block: nn.Module) -> None:
    """Set a block's weights so that it returns its input, which is nowhere negative (it comes from a ReLU)."""
    if not isinstance(block, (BasicBlock, Bottleneck)):
        raise TypeError(f"no identity of a {type(block).__name__}")
    carried_around = block.downsample is not None and not isinstance(block, HighwayBlock)
    if carried_around:  # F(x) = 0
        last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    elif isinstance(block, BasicBlock):  # F(x) = x; a highway's gate then mixes x with x
        for layer in (block.conv1, block.conv2, block.bn1, block.bn2):
            carry(layer)
    else:
        raise UserError("a plain bottleneck can't compute the identity: its first 1×1 drops three of four channels")
    if isinstance(block.downsample, nn.Sequential):  # option C
        for projection in block.downsample:
            carry(projection)


def carry(layer: nn.Module) -> None:
    """Set one convolution or batch norm (in evaluation) to the identity."""
    with torch.no_grad():
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
            nn.init.zeros_(layer.running_mean)
            layer.running_var.fill_(1 - layer.eps)  # variance + eps = 1
