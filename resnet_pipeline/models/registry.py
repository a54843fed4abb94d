"""Networks by name; the tables of depths are data."""

from __future__ import annotations

import re
from typing import Literal, cast, get_args

from resnet_pipeline.errors import UserError, did_you_mean
from resnet_pipeline.models.blocks import BasicBlock, Block, Bottleneck, Shortcut, Stride
from resnet_pipeline.models.highway import GATE_BIAS, HighwayBlock
from resnet_pipeline.models.resnet import Architecture, Pooling, ResNet

_WIDTHS = (64, 128, 256, 512)
# Table 1: depth -> (block, blocks per stage)
_IMAGENET: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
_NAMED = (
    *(f"plain{depth}" for depth in (18, 34)),
    *(f"resnet{depth}" for depth in _IMAGENET),
    *(f"cifar-plain{depth}" for depth in (20, 32, 44, 56, 110)),
    *(f"cifar-resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)),
    *(f"cifar-highway{depth}" for depth in (20, 32, 44, 56, 110)),
)


def model_names() -> list[str]:
    """Return the names of the paper's networks; CIFAR networks of other depths 6n+2 can be built too.

    >>> model_names()[:3]
    ['plain18', 'plain34', 'resnet18']
    """
    return list(_NAMED)


def depth_of(name: str) -> int:
    """Return the number of weighted layers on the longest path, as the paper counts them; UserError if unknown.

    >>> depth_of("cifar-resnet110")
    110
    """
    return _parse(name)[2]


def architecture_of(
    name: str,
    *,
    shortcut: Literal["A", "B", "C"] | None = None,
    stride: Stride = "v1",
    pooling: Pooling = "pytorch",
    gate_bias: float = GATE_BIAS,
) -> Architecture:
    """Return a network's architecture by name; the options and errors are those of `build_model`."""
    family, kind, depth = _parse(name)
    if kind == "plain" and shortcut is not None:
        raise UserError(f"{name} is a plain network: it has no shortcuts, so shortcut={shortcut!r} can't apply")
    if family == "cifar":
        if shortcut not in (None, "A", "B"):
            raise UserError(f"{name} takes shortcut A (the paper's) or B, not {shortcut!r}")
        n = (depth - 2) // 6
        block: Block = HighwayBlock if kind == "highway" else BasicBlock
        option: Shortcut = "none" if kind == "plain" else (shortcut or "A")
        return Architecture("cifar", block, [(n, 16), (n, 32), (n, 64)], option, gate_bias=gate_bias)
    if shortcut not in (None, "A", "B", "C"):
        raise UserError(f"{name} takes shortcut A, B or C, not {shortcut!r}")
    block, blocks = _IMAGENET[depth]
    option = "none" if kind == "plain" else (shortcut or ("A" if depth < 50 else "B"))
    stages = list(zip(blocks, _WIDTHS, strict=True))
    return Architecture("imagenet", block, stages, option, stride, pooling)


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    shortcut: Literal["A", "B", "C"] | None = None,
    stride: Stride = "v1",
    pooling: Pooling = "pytorch",
    gate_bias: float = GATE_BIAS,
    checkpointing: int = 0,
) -> ResNet:
    """Build a network by name: ``resnet152``, ``plain34``, ``cifar-resnet20``, ``cifar-plain56``, ``cifar-highway20``.

    ``num_classes`` defaults to 1000, or 10 for CIFAR networks. ``shortcut`` defaults to the paper's: option A for
    ResNet-18, ResNet-34 and CIFAR networks (Tables 2 and 6), B from 50 layers on (Table 3). ``stride`` says which
    convolution of a bottleneck halves the map: v1 its first (the paper), v1.5 its 3×3 (torchvision). With
    ``checkpointing=n`` training keeps the activations of every n-th block only and computes the others again; 0 keeps
    all. Weights are drawn from PyTorch's global generator. Raises UserError for an unknown name, or an option that the
    network can't have.

    >>> import torch
    >>> network = build_model("resnet34", num_classes=10, shortcut="B")
    >>> network(torch.zeros(2, 3, 224, 224)).shape
    torch.Size([2, 10])
    """
    if stride not in get_args(Stride):
        raise UserError(f"stride must be one of {', '.join(get_args(Stride))}, not {stride!r}")
    if pooling not in get_args(Pooling):
        raise UserError(f"pooling must be one of {', '.join(get_args(Pooling))}, not {pooling!r}")
    if checkpointing < 0:
        raise UserError(f"checkpointing must be a number of blocks, or 0 for none, not {checkpointing}")
    architecture = architecture_of(name, shortcut=shortcut, stride=stride, pooling=pooling, gate_bias=gate_bias)
    classes = num_classes if num_classes is not None else (10 if architecture.stem == "cifar" else 1000)
    if classes < 1:
        raise UserError(f"num_classes must be at least 1, not {classes}")
    return ResNet(architecture, num_classes=classes, checkpointing=checkpointing)


def _parse(name: str) -> tuple[str, str, int]:
    """Return (family, kind, depth) of a name."""
    match = re.fullmatch(r"(cifar-)?(plain|resnet|highway)([1-9]\d*)", name)
    if match is None:
        near = did_you_mean(name, _NAMED)
        raise UserError(f"unknown network {name!r}{near or '; the networks are ' + ', '.join(_NAMED)}")
    family, kind, depth = match[1] or "", cast("str", match[2]), int(match[3])
    if family:
        if depth < 8 or (depth - 2) % 6:
            below = max(8, (depth - 2) // 6 * 6 + 2)
            raise UserError(
                f"{name}: CIFAR networks have 6n+2 layers for n >= 1; {depth} is not one, {below} or {below + 6} are"
            )
        return "cifar", kind, depth
    known = [d for d in _IMAGENET if kind == "resnet" or d < 50]
    if kind == "highway" or depth not in known:
        raise UserError(
            f"unknown network {name!r}; {kind} networks for ImageNet have {', '.join(map(str, known))} layers"
            if kind != "highway"
            else f"unknown network {name!r}; highway networks are named cifar-highway20 and so on"
        )
    return "imagenet", kind, depth
