"""Networks by name; the tables of depths are data."""

from __future__ import annotations

import re
from typing import Literal, cast

from resnet_pipeline.errors import UserError, did_you_mean
from resnet_pipeline.models.blocks import BasicBlock, Block, Bottleneck, Shortcut, Stride
from resnet_pipeline.models.highway import HighwayBlock
from resnet_pipeline.models.resnet import Architecture, ResNet

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
    "plain18", "plain34", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "cifar-plain20", "cifar-plain32", "cifar-plain44", "cifar-plain56",
    "cifar-resnet20", "cifar-resnet32", "cifar-resnet44", "cifar-resnet56", "cifar-resnet110", "cifar-resnet1202",
    "cifar-highway20", "cifar-highway32",
)  # fmt: skip


def model_names() -> list[str]:
    """Return the named networks; CIFAR networks of other depths 6n+2 can be built too."""
    return list(_NAMED)


def depth_of(name: str) -> int:
    """Return the number of weighted layers on the longest path, as the paper counts them; UserError if unknown."""
    return _parse(name)[2]


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    shortcut: Literal["A", "B", "C"] | None = None,
    stride: Stride = "v1",
    pooling: Literal["pytorch", "caffe"] = "pytorch",
) -> ResNet:
    """Build a network by name: ``resnet152``, ``plain34``, ``cifar-resnet20``, ``cifar-plain56``, ``cifar-highway20``.

    ``num_classes`` defaults to 1000, or 10 for CIFAR networks. ``shortcut`` defaults to the paper's: option A for
    ResNet-18, ResNet-34 and CIFAR networks (Tables 2 and 6), B from 50 layers on (Table 3). Weights are drawn from
    PyTorch's global generator. Raises UserError for an unknown name or an option that the network can't have.
    """
    family, kind, depth = _parse(name)
    if kind == "plain" and shortcut is not None:
        raise UserError(f"{name} is a plain network: it has no shortcuts, so shortcut={shortcut!r} can't apply")
    if family == "cifar":
        if shortcut not in (None, "A", "B"):
            raise UserError(f"{name} takes shortcut A (the paper's) or B, not {shortcut!r}")
        n = (depth - 2) // 6
        block: Block = HighwayBlock if kind == "highway" else BasicBlock
        option: Shortcut = "none" if kind == "plain" else (shortcut or "A")
        architecture = Architecture("cifar", block, [(n, 16), (n, 32), (n, 64)], option)
        return ResNet(architecture, num_classes=10 if num_classes is None else num_classes)
    block, blocks = _IMAGENET[depth]
    option = "none" if kind == "plain" else (shortcut or ("A" if depth < 50 else "B"))
    stages = list(zip(blocks, _WIDTHS, strict=True))
    architecture = Architecture("imagenet", block, stages, option, stride, pooling)
    return ResNet(architecture, num_classes=1000 if num_classes is None else num_classes)


def _parse(name: str) -> tuple[str, str, int]:
    """Return (family, kind, depth) of a name."""
    match = re.fullmatch(r"(cifar-)?(plain|resnet|highway)(\d+)", name)
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
