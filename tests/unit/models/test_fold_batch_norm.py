from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from resnet_pipeline.models import Classifier, Normalize, build_model, fold_batch_norm, fully_convolutional
from resnet_pipeline.models.weights import weights_sha256


def classifier_of(name, **options):
    torch.manual_seed(0)
    model = Classifier(Normalize(torch.tensor([120.0, 110.0, 100.0])), build_model(name, num_classes=7, **options))
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return model.eval()


def images(*shape):
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet34", {"shortcut": "C", "pooling": "caffe"}, 34),
        ("resnet50", {"stride": "v1.5"}, 34),
        ("cifar-resnet14", {}, 32),
        ("cifar-plain14", {}, 32),
    ],
)
def test_it_computes_what_the_network_does(monkeypatch, name, options, size):
    model = classifier_of(name, **options)
    digest, batch, wide = weights_sha256(model), images(3, size, size), images(2, size, size + 64)
    with torch.inference_mode():
        fast = fold_batch_norm(model)
        dense, fast_dense = (fully_convolutional(m, crop=size) for m in (model, fast))
        for fused in (True, False):
            monkeypatch.setattr(importlib.import_module("resnet_pipeline.models.fold_batch_norm"), "_FUSED", fused)
            for slow, quick, x in ((model, fast, batch), (dense, fast_dense, wide), (model, fast, batch)):
                expected, found = slow(x), quick(x)
                assert found.shape == expected.shape
                assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert weights_sha256(model) == digest


def test_other_networks_stay_as_they_are():
    other = Classifier(Normalize(torch.zeros(3)), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    highway = classifier_of("cifar-highway8")
    assert fold_batch_norm(other) is other and fold_batch_norm(highway) is highway
