"""Caffe's files written by hand, byte by byte (protobuf's wire format), so that no test reads what its reader wrote."""

from __future__ import annotations

import struct

import numpy as np

VARINT, LENGTH, FIXED32 = 0, 2, 5  # wire types


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, wire, payload):
    tag = varint(number << 3 | wire)
    return tag + (varint(len(payload)) if wire == LENGTH else b"") + payload


def blob(values, *, form="shape"):
    """Write a BlobProto: with a BlobShape, with the four legacy dimensions, or unpacked floats, or doubles."""
    values = np.asarray(values)
    if form == "legacy":
        dims = (1,) * (4 - values.ndim) + values.shape
        shape = b"".join(field(1 + i, VARINT, varint(n)) for i, n in enumerate(dims))
    else:
        shape = field(7, LENGTH, field(1, LENGTH, b"".join(varint(n) for n in values.shape)))
    if form == "unpacked":
        return shape + b"".join(field(5, FIXED32, struct.pack("<f", v)) for v in values.ravel())
    if form == "double":
        return shape + field(8, LENGTH, values.astype("<f8").tobytes())
    return field(5, LENGTH, values.astype("<f4").tobytes()) + shape


def layer(name, kind, blobs, *, eps=None, form="shape"):
    """Write a LayerParameter as a field of a NetParameter, with fields that the reader does not know between."""
    body = field(1, LENGTH, name.encode()) + field(2, LENGTH, kind.encode()) + field(3, LENGTH, b"bottom")
    body += b"".join(field(7, LENGTH, blob(b, form=form)) for b in blobs)
    if kind == "BatchNorm":
        parameter = field(1, VARINT, varint(1)) + (field(3, FIXED32, struct.pack("<f", eps)) if eps else b"")
        body += field(139, LENGTH, parameter)
    return field(100, LENGTH, body + field(106, LENGTH, field(1, VARINT, varint(64))))


def v1_layer(name, blobs):
    """Write a V1LayerParameter, Caffe's older form."""
    body = field(4, LENGTH, name.encode()) + field(5, VARINT, varint(4))
    return field(2, LENGTH, body + b"".join(field(6, LENGTH, blob(b, form="legacy")) for b in blobs))


def net(*layers):
    return field(1, LENGTH, b"ResNet") + field(100, LENGTH, field(1, LENGTH, b"data")) + b"".join(layers)
