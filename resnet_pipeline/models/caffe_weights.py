"""The authors' released weights (``ResNet-50-model.caffemodel``, 101, 152) as state dicts of this program's networks.

Their layers are named ``res4b22_branch2c``: stage, block (a letter, or from ResNet-101 on a, b1, b2 …), branch (1 is
the projection, 2a to 2c the residual function); ``bn…`` and ``scale…`` are its batch norm's two halves.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.models.caffe import CaffeLayer, read_caffemodel

_TORCH_EPS = 1e-5  # of torch.nn.BatchNorm2d
_LAYER = re.compile(r"(res|bn|scale)(\d)([a-z])(\d*)_branch(1|2[a-c])")


def read_caffe_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict, in this program's names, of a ``.caffemodel`` in the authors' release's names.

    The first convolution's inputs are turned from BGR to RGB. A convolution's bias (ResNet-50's conv1 has one) is
    subtracted from the running mean of its batch norm, which computes the same. Caffe keeps sums of statistics with
    their scale factor (``BatchNorm`` blobs: mean, variance, factor) and the affine half in a ``Scale`` layer. Raises
    UserError where the file is unreadable or a layer of it is unknown.
    """
    state: dict[str, torch.Tensor] = {}
    biases: dict[str, torch.Tensor] = {}
    for layer in read_caffemodel(path):
        _convert(path, layer, state, biases)
    for name, bias in biases.items():
        mean = _batch_norm_of(name) + ".running_mean"
        if mean not in state:
            raise UserError(f"{path}: the bias of {name} has no BatchNorm after it to go to")
        state[mean] = state[mean] - bias
    if "conv1.weight" in state:
        state["conv1.weight"] = state["conv1.weight"].flip(1)
    return state


def _convert(path: Path, layer: CaffeLayer, state: dict[str, torch.Tensor], biases: dict[str, torch.Tensor]) -> None:
    kind, name = _names(path, layer.name)
    blobs = layer.blobs
    expected = {"res": (1, 2), "fc": (2,), "bn": (3,), "scale": (2,)}[kind]
    if len(blobs) not in expected:
        raise UserError(
            f"{path}: layer {layer.name} has {len(blobs)} blobs, expected {' or '.join(map(str, expected))}"
        )
    if kind == "res":
        state[f"{name}.weight"] = blobs[0]
        if len(blobs) == 2:
            biases[name] = blobs[1].flatten()
    elif kind == "fc":
        state["fc.weight"], state["fc.bias"] = blobs[0].reshape(blobs[0].shape[-2:]), blobs[1].flatten()
    elif kind == "scale":
        state[f"{name}.weight"], state[f"{name}.bias"] = blobs[0].flatten(), blobs[1].flatten()
    else:
        if blobs[2].numel() != 1:
            raise UserError(f"{path}: layer {layer.name} has no single scale factor: it has {blobs[2].numel()} values")
        factor = float(blobs[2])
        scale = 0.0 if factor == 0 else 1 / factor  # as in Caffe's BatchNormLayer
        state[f"{name}.running_mean"] = (blobs[0].double() * scale).float().flatten()
        variance = blobs[1].double() * scale + (layer.eps - _TORCH_EPS)
        state[f"{name}.running_var"] = variance.float().flatten()


def _names(path: Path, caffe: str) -> tuple[str, str]:
    """Return (kind, name in this program) of a layer; kinds are ``res`` (a convolution), ``bn``, ``scale``, ``fc``."""
    first = {"conv1": ("res", "conv1"), "bn_conv1": ("bn", "bn1"), "scale_conv1": ("scale", "bn1")}
    if caffe in first:
        return first[caffe]
    if re.fullmatch(r"fc\d*", caffe):
        return "fc", "fc"
    match = _LAYER.fullmatch(caffe)
    if match is None:
        raise UserError(f"{path}: layer {caffe} is none of the authors' ResNets (such as res2a_branch2a or bn_conv1)")
    kind, stage, letter, number, branch = match.groups()
    block = int(number) if number else ord(letter) - ord("a")
    prefix = f"layer{int(stage) - 1}.{block}"
    convolution = f"{prefix}.downsample.0" if branch == "1" else f"{prefix}.conv{'abc'.index(branch[1]) + 1}"
    return kind, convolution if kind == "res" else _batch_norm_of(convolution)


def _batch_norm_of(convolution: str) -> str:
    """Return the name of the batch norm that follows a convolution."""
    if convolution.endswith("downsample.0"):
        return convolution.removesuffix("0") + "1"
    return re.sub(r"conv(\d)$", r"bn\1", convolution)
