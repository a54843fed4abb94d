from __future__ import annotations

import functools

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_pipeline.errors import UserError
from resnet_pipeline.models import build_model, model_names
from resnet_pipeline.models.complexity import complexity


@functools.cache
def cost_of(name, size, **options):
    with torch.device("meta"):
        return complexity(build_model(name, **options), size)


@pytest.mark.parametrize(
    ("name", "printed"),  # Table 1, in units of 1e9
    [("resnet18", 1.8), ("resnet34", 3.6), ("resnet50", 3.8), ("resnet101", 7.6), ("resnet152", 11.3)],
)
def test_multiply_adds_are_table_1_s(name, printed):
    multiply_adds = cost_of(name, 224).multiply_adds / 1e9
    # R101 and R152 are rounded there, R50 (3.858 in the authors' release notes) is cut off
    assert printed in (round(multiply_adds, 1), int(multiply_adds * 10) / 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "multiply_adds"),
    [("resnet50", 25.56, 3.858), ("resnet101", 44.55, 7.570), ("resnet152", 60.19, 11.282)],
)
def test_complexity_is_that_of_the_authors_release_notes(name, parameters, multiply_adds):
    cost = cost_of(name, 224)
    assert round(cost.parameters / 1e6, 2) == parameters
    assert round(cost.multiply_adds / 1e9, 3) == multiply_adds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "printed", "digits"),  # Table 6, in millions
    [(20, 0.27, 2), (32, 0.46, 2), (44, 0.66, 2), (56, 0.85, 2), (110, 1.7, 1), (1202, 19.4, 1)],
)
def test_parameters_are_table_6_s(depth, printed, digits):
    assert round(cost_of(f"cifar-resnet{depth}", 32).parameters / 1e6, digits) == printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        # an odd side, which strides round; the usual ones are in the tables above
        *((name, 97) for name in (*model_names(), "vgg16") if not name.endswith("1202")),
        *((name, size) for name in ("resnet18", "resnet50", "cifar-resnet20") for size in (32, 224)),
    ],
)
def test_it_agrees_with_pytorch_s_own_counter(name, size):
    with torch.device("meta"):
        network = torchvision.models.vgg16(weights=None) if name == "vgg16" else build_model(name)
        with FlopCounterMode(display=False) as counter:
            network.eval()(torch.zeros(1, 3, size, size))
    cost = complexity(network, size)
    assert counter.get_total_flops() == 2 * cost.multiply_adds  # an addition and a multiplication
    assert cost.parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_it_agrees_with_torchvision_s_published_figures(depth):
    meta = torchvision.models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1.meta
    cost = cost_of(f"resnet{depth}", 224, shortcut="B", stride="v1.5")
    assert cost.parameters == meta["num_params"]
    assert round(cost.multiply_adds / 1e9, 3) == meta["_ops"]


@pytest.mark.slow
def test_stages_add_up_and_grow_with_the_area():
    cost = cost_of("resnet50", 224)
    assert [s.name for s in cost.stages] == ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
    assert sum(s.multiply_adds for s in cost.stages) == cost.multiply_adds
    assert sum(s.parameters for s in cost.stages) == cost.parameters
    double = cost_of("resnet50", 448)
    for one, four in zip(cost.stages[:-1], double.stages[:-1], strict=True):
        assert four.multiply_adds == 4 * one.multiply_adds
    assert double.stages[-1] == cost.stages[-1]


def test_a_layer_that_is_used_twice_counts_twice_and_groups_divide():
    layer = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), layer, layer)
    assert complexity(network, 5).multiply_adds == 25 * 4 * 3 + 2 * 25 * 4 * 9 * 2


def test_an_image_without_pixels_is_refused():
    with pytest.raises(UserError, match="at least 1 pixel, not 0"):
        complexity(build_model("cifar-resnet8"), 0)


def test_counting_leaves_the_network_as_it_was():
    network = build_model("cifar-resnet8").train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    complexity(network, 32)
    assert network.training and not any(m._forward_hooks for m in network.modules())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
