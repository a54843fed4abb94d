"""State dicts between the naming schemes, and whether one fits a network. torchvision's names are this program's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from resnet_pipeline.errors import UserError
from resnet_pipeline.models.blocks import Bottleneck, ZeroPadShortcut
from resnet_pipeline.models.identity_extension import carry
from resnet_pipeline.models.resnet import ResNet

StateDict = dict[str, torch.Tensor]

_AROUND = re.compile(r"^(?:(?:module|model|backbone|net)\.)+")
_COUNTS = re.compile(r"(?:^|\.)(?:n_averaged|total_ops|total_params)$")


def plain_names(state: Mapping[str, torch.Tensor]) -> StateDict:
    """Return the tensors under torchvision's names.

    Known others: what modules around the network put before its names, in any order (``module.`` of DataParallel,
    ``_orig_mod.`` of a compiled module, ``model.``, ``backbone.`` and ``net.`` of a trainer), ``linear`` for the
    classifier and ``shortcut`` for the projections (the public CIFAR-10 networks). What only counts (the averages of
    an EMA, a profiler's operations) is left out. Raises UserError if two tensors would get one name.

    >>> list(plain_names({"module.fc.weight": torch.zeros(10, 64)}))
    ['fc.weight']
    """
    plain: StateDict = {}
    names: dict[str, str] = {}
    for name, tensor in state.items():
        short = _AROUND.sub("", name.replace("_orig_mod.", ""))
        short = re.sub(r"^linear\.", "fc.", short)
        short = re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", short)
        if _COUNTS.search(short):
            continue
        if short in plain:
            raise UserError(f"it holds two networks: both {names[short]} and {name} would be {short}")
        plain[short], names[short] = tensor, name
    return plain


def check_fit(path: Path, state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError, naming the first three tensors and what was expected, unless names and shapes are the same."""
    problems = [
        f"{name} is missing, expected with shape {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name not in state
    ]
    problems += [f"{name} is not the network's" for name in state if name not in wanted]
    problems += [
        f"{name} has shape {list(state[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems += [
        f"{name} has dtype {state[name].dtype}, expected {tensor.dtype}"
        for name, tensor in wanted.items()
        if name in state and state[name].is_floating_point() != tensor.is_floating_point()
    ]
    if problems:
        # one of each kind first: a file of another network lacks many tensors and has many that don't belong
        kinds = ("is missing", "is not the network's", "has shape", "has dtype")
        first = [p for kind in kinds for p in [q for q in problems if kind in q][:1]]
        first += [p for p in problems if p not in first][: 3 - len(first)]
        more = f" and {len(problems) - len(first)} more" if len(problems) > len(first) else ""
        raise UserError(f"{path} does not fit the network: {'; '.join(first)}{more}")


def torchvision_state_dict(network: ResNet) -> StateDict:
    """Return the state dict that torchvision's (and timm's) ResNet of the same depth loads, outputs unchanged.

    Their projections (option B) stand in for option A's zero-padding: a 1×1 convolution that copies each channel and a
    batch norm that does nothing. Raises UserError for a network that has no equal there: plain, highway and CIFAR
    networks, option C, bottlenecks with stride v1, Caffe's pooling.

    Example: ``torchvision_state_dict(build_model("resnet50"))``
    """
    architecture = network.architecture
    reasons = {
        f"its first layers are {architecture.stem}'s": architecture.stem != "imagenet",
        "it has no shortcuts": architecture.shortcut == "none",
        "its shortcut is option C": architecture.shortcut == "C",
        "its stride is v1, theirs v1.5": architecture.block is Bottleneck and architecture.stride != "v1.5",
        "its pooling is Caffe's": architecture.pooling != "pytorch",
    }
    for reason, holds in reasons.items():
        if holds:
            raise UserError(f"torchvision has no such network: {reason}; save it as .safetensors instead")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    for name, module in network.named_modules():
        if isinstance(module, ZeroPadShortcut):
            state |= _as_projection(name, module)
    return state


def _as_projection(name: str, shortcut: ZeroPadShortcut) -> StateDict:
    """Return the tensors of the 1×1 convolution and batch norm that compute a zero-padding shortcut."""
    norm = nn.BatchNorm2d(shortcut.before + shortcut.inputs + shortcut.after)
    carry(norm)
    weight = torch.zeros(norm.num_features, shortcut.inputs, 1, 1)
    weight[shortcut.before : shortcut.before + shortcut.inputs, :, 0, 0] = torch.eye(shortcut.inputs)
    return {f"{name}.0.weight": weight, **{f"{name}.1.{key}": t for key, t in norm.state_dict().items()}}
