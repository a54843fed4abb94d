"""Caffe's binary files: the messages of its ``caffe.proto`` that hold weights, read with protobuf.

Field numbers and types are those of BVLC's ``src/caffe/proto/caffe.proto``; fields that no weight file needs are left
out, and protobuf skips them. The descriptors are built here, in a pool of their own, so that they work with any
protobuf runtime and beside any other definition of the ``caffe`` package in the same process.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

from resnet_pipeline.errors import UserError

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
    """Return the layers of a ``.caffemodel`` that have weights; UserError for a file that is none."""
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
