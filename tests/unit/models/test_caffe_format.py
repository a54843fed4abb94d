from __future__ import annotations

import numpy as np
import pytest
import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.models.caffe import read_caffemodel, read_mean_image
from tests.unit.models import caffe_writer as caffe


@pytest.mark.parametrize("form", ["shape", "legacy", "unpacked", "double"])
def test_layers_with_weights_are_read_in_every_form_that_caffe_writes(tmp_path, form):
    first, second = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    path = tmp_path / "net.caffemodel"
    path.write_bytes(
        caffe.net(
            caffe.layer("a", "Convolution", [first, second], form=form),
            caffe.layer("relu", "ReLU", []),
            caffe.layer("b", "BatchNorm", [first[0]], eps=0.25, form=form),
            caffe.layer("c", "BatchNorm", [first[0]], form=form),
            caffe.v1_layer("old", [second]),
        )
    )
    layers = read_caffemodel(path)
    assert [x.name for x in layers] == ["a", "b", "c", "old"]
    assert [x.eps for x in layers] == [1e-5, 0.25, 1e-5, 1e-5]
    assert torch.equal(layers[0].blobs[0], torch.from_numpy(first))
    assert torch.equal(layers[0].blobs[1], torch.from_numpy(second))
    assert torch.equal(layers[1].blobs[0].reshape(4, 5, 6), torch.from_numpy(first[0]))
    assert torch.equal(layers[3].blobs[0], torch.from_numpy(second))


@pytest.mark.parametrize("form", ["shape", "legacy"])
def test_a_mean_image_becomes_rgb_with_channels_last(tmp_path, form):
    bgr = np.random.default_rng(0).uniform(0, 255, size=(1, 3, 4, 5)).astype(np.float32)
    (tmp_path / "mean.binaryproto").write_bytes(caffe.blob(bgr, form=form))
    mean = read_mean_image(tmp_path / "mean.binaryproto")
    assert mean.shape == (4, 5, 3) and mean.dtype == torch.float32
    for y in range(4):
        for x in range(5):
            assert mean[y, x].tolist() == [bgr[0, 2, y, x], bgr[0, 1, y, x], bgr[0, 0, y, x]]


def test_files_that_are_none_are_named(tmp_path):
    good = caffe.net(caffe.layer("a", "Convolution", [np.zeros((2, 2))]))
    short = caffe.field(5, 2, b"\0" * 8) + caffe.field(7, 2, caffe.field(1, 2, caffe.varint(3)))
    cases = {
        "missing": (None, "does not exist"),
        "garbage": (b"\x0b\xff" * 9, "NetParameter"),
        "cut": (good[:-7], "NetParameter"),
        "empty": (b"", "no layer with weights"),
        "short": (
            caffe.net(caffe.field(100, 2, caffe.field(1, 2, b"conv9") + caffe.field(7, 2, short))),
            "layer conv9",
        ),
    }
    for name, (content, said) in cases.items():
        path = tmp_path / f"{name}.caffemodel"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=said) as error:
            read_caffemodel(path)
        assert name in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "grey.binaryproto").write_bytes(caffe.blob(np.zeros((1, 1, 4, 4))))
    with pytest.raises(UserError, match=r"grey.binaryproto has shape \[1, 4, 4\]"):
        read_mean_image(tmp_path / "grey.binaryproto")
