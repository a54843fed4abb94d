from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from resnet_pipeline.config import ViewConfig
from resnet_pipeline.data.loaders import view_batches
from resnet_pipeline.evaluation.responses import response_layers, responses
from resnet_pipeline.evaluation.trained_model import Member
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.report.evaluation_figures import responses_figure, save_figure


def member(name):
    torch.manual_seed(0)
    network = build_model(name, num_classes=10)
    return Member(
        name=name,
        classifier=Classifier(Normalize(torch.tensor([90.0, 90.0, 90.0])), network).eval(),
        views=ViewConfig(crop=16, resize=16, scales=(16,)),
        weights_sha256="",
        network=name,
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cifar-resnet20", 19),
        ("cifar-plain20", 19),
        ("cifar-highway8", 7),
        ("resnet18", 16),
        ("resnet50", 16),
    ],
)
def test_the_3x3_layers_are_found_in_order(name, count):
    layers = response_layers(build_model(name))
    assert len(layers) == count
    assert layers[0][0] == ("conv1" if name.startswith("cifar") else f"layer1.0.conv{2 if '50' in name else 1}")
    assert not any("downsample" in layer or "gate" in layer for layer, _ in layers)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar-resnet8", "cifar-plain8"])
def test_they_are_the_standard_deviations_of_a_forward_pass_by_hand(digits, name, tmp_path):
    tested = member(name)
    found = responses(tested, digits, images=40)
    with view_batches(
        digits, split="val", views="center", resize=16, crop=16, batch_size=40, indices=np.arange(40) * 364 // 40
    ) as batches:
        x = tested.classifier.normalize(next(batches).images[:, 0])
    network, expected = tested.classifier.network, []
    with torch.inference_mode():
        x = network.bn1(network.conv1(x))
        expected.append(x.std(correction=0))
        x = F.relu(x)
        for stage in network.stage_names:
            for block in network.get_submodule(stage):
                first = block.bn1(block.conv1(x))
                second = block.bn2(block.conv2(F.relu(first)))
                expected += [first.std(correction=0), second.std(correction=0)]
                x = F.relu(second if block.downsample is None else second + block.downsample(x))
    np.testing.assert_allclose(found, torch.stack(expected).numpy(), rtol=1e-4)
    again = responses(tested, digits, images=40)
    np.testing.assert_array_equal(again, found)
    save_figure(responses_figure({name: found}), tmp_path / "figure7.png")
    assert (tmp_path / "figure7.png").stat().st_size > 5000
