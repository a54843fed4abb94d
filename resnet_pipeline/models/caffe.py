"""The authors' released weights (``ResNet-50-model.caffemodel``, 101, 152) as state dicts of this program's networks.

Their layers are named ``res4b22_branch2c``: stage, block (a letter, or from ResNet-101 on a, b1, b2 …), branch (1 is
the projection, 2a to 2c the residual function); ``bn…`` and ``scale…`` are its batch norm's two halves.

A file holds messages of Caffe's ``caffe.proto``, read with protobuf.

Field numbers and types are those of BVLC's ``src/caffe/proto/caffe.proto``. Fields that no weight file needs are left
out, and protobuf skips them. The descriptors are built here, in a pool of their own. So they work with any protobuf
runtime, and beside any other definition of the ``caffe`` package in the same process.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from resnet_pipeline.errors import UserError

_TORCH_EPS = 1e-5  # of torch.nn.BatchNorm2d
_LAYER = re.compile(r"(res|bn|scale)(\d)([a-z])(\d*)_branch(1|2[a-c])")

_FLOAT, _DOUBLE, _INT32, _INT64, _STRING = 2, 1, 5, 3, 9  # FieldDescriptorProto.Type
# message -> (field, number, type, or the message it holds; "[]" marks a repeated field)
_MESSAGES: dict[str, tuple[tuple[str, int, int | str], ...]] = {
    "BlobShape": (("dim[]", 1, _INT64),),
    "BlobProto": (
        ("num", 1, _INT32),  # num to width: the shape before Caffe had BlobShape
        ("channels", 2, _INT32),
        ("height", 3, _INT32),
        ("width", 4, _INT32),
        ("data[]", 5, _FLOAT),
        ("shape", 7, "BlobShape"),
        ("double_data[]", 8, _DOUBLE),
    ),
    "BatchNormParameter": (("eps", 3, _FLOAT),),
    "LayerParameter": (
        ("name", 1, _STRING),
        ("type", 2, _STRING),
        ("blobs[]", 7, "BlobProto"),
        ("batch_norm_param", 139, "BatchNormParameter"),
    ),
    "V1LayerParameter": (("name", 4, _STRING), ("blobs[]", 6, "BlobProto")),
    "NetParameter": (
        ("name", 1, _STRING),
        ("layers[]", 2, "V1LayerParameter"),
        ("layer[]", 100, "LayerParameter"),
    ),
}
_BATCH_NORM_EPS = 1e-5  # BatchNormParameter's default


@dataclass(frozen=True)
class CaffeLayer:
    """A layer that has weights: its blobs as float32 tensors, and the epsilon that a BatchNorm layer adds."""

    name: str
    blobs: tuple[torch.Tensor, ...]
    eps: float = _BATCH_NORM_EPS


def read_caffemodel(path: Path) -> list[CaffeLayer]:
    """Return the layers of a ``.caffemodel`` that have weights; UserError for a file that is none.

    Example: ``[layer.name for layer in read_caffemodel(Path("ResNet-50-model.caffemodel"))]``
    """
    network = _parse(path, "NetParameter")
    layers = []
    for layer in (*network.layer, *network.layers):
        if not layer.blobs:
            continue
        blobs = tuple(_tensor(blob, f"{path}: layer {layer.name}") for blob in layer.blobs)
        own = hasattr(layer, "batch_norm_param") and layer.batch_norm_param.HasField("eps")
        layers.append(CaffeLayer(layer.name, blobs, layer.batch_norm_param.eps if own else _BATCH_NORM_EPS))
    if not layers:
        raise UserError(f"{path} holds no layer with weights: it is no .caffemodel, or one of an untrained network")
    return layers


def read_mean_image(path: Path) -> torch.Tensor:
    """Return a ``.binaryproto`` mean file, BGR [1, 3, H, W], as a mean image RGB float32 [H, W, 3] in 0..255 units.

    Raises UserError for a file that is none.

    Example: ``read_mean_image(Path("ResNet_mean.binaryproto")).shape``
    """
    blob = _tensor(_parse(path, "BlobProto"), f"{path}: the mean")
    if blob.dim() == 4 and blob.shape[0] == 1:
        blob = blob[0]
    if blob.dim() != 3 or blob.shape[0] != 3:
        raise UserError(f"{path} has shape {list(blob.shape)}, expected a mean image [1, 3, H, W]")
    return blob.flip(0).permute(1, 2, 0).contiguous()


@functools.cache
def _message_class(name: str) -> type[Message]:
    file = descriptor_pb2.FileDescriptorProto(name="resnet_pipeline/caffe.proto", package="caffe", syntax="proto2")
    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        for field_name, number, kind in fields:
            repeated = field_name.endswith("[]")
            field = message.field.add(name=field_name.removesuffix("[]"), number=number)
            field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if isinstance(kind, str):
                field.type, field.type_name = field.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = kind  # type: ignore[assignment]
                if repeated:
                    field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))


def _parse(path: Path, message: str) -> Any:
    if not path.is_file():
        raise UserError(f"file {path} does not exist")
    try:
        return _message_class(message).FromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{path} can't be read as Caffe's {message}: it is damaged or something else") from None


def _tensor(blob: Any, what: str) -> torch.Tensor:
    values = np.array(blob.double_data if blob.double_data else blob.data, dtype=np.float32)
    shape = list(blob.shape.dim) if blob.HasField("shape") else [blob.num, blob.channels, blob.height, blob.width]
    if min(shape, default=1) < 0 or math.prod(shape) != values.size:
        raise UserError(f"{what} has {values.size} values, which do not fill its shape {shape}")
    return torch.from_numpy(values).reshape(shape)


def read_caffe_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return a ``.caffemodel`` of the authors' release as a state dict with this program's names.

    The first convolution's inputs are turned from BGR to RGB. A convolution's bias (ResNet-50's conv1 has one) is
    subtracted from the running mean of its batch norm, which computes the same. Caffe keeps sums of statistics with
    their scale factor (``BatchNorm`` blobs: mean, variance, factor) and the affine half in a ``Scale`` layer. Raises
    UserError if the file is unreadable or a layer of it is unknown.

    Example: ``read_caffe_weights(Path("ResNet-50-model.caffemodel"))["fc.weight"]``
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
