from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision

from resnet_pipeline.errors import UserError
from resnet_pipeline.models import build_model
from resnet_pipeline.models.state_dicts import check_fit, plain_names, torchvision_state_dict


def with_statistics(network):
    """Give batch norm statistics and affine parameters other than the initial ones."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
    return network.eval()


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize(
    ("depth", "shortcut"), [(18, "A"), (18, "B"), (34, "A"), (34, "B"), (50, "A"), (50, "B"), (101, "B"), (152, "B")]
)
def test_the_libraries_networks_compute_the_same_with_our_weights(depth, shortcut, library):
    torch.manual_seed(0)
    ours = with_statistics(build_model(f"resnet{depth}", shortcut=shortcut, stride="v1.5"))
    make = torchvision.models.get_model if library == "torchvision" else timm.create_model
    theirs = make(f"resnet{depth}").eval()
    theirs.load_state_dict(torchvision_state_dict(ours))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = ours(images)
        torch.testing.assert_close(theirs(images), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("plain34", {}, "no shortcuts"),
        ("resnet34", {"shortcut": "C"}, "option C"),
        ("resnet50", {}, "stride is v1"),
        ("resnet50", {"stride": "v1.5", "pooling": "caffe"}, "pooling is Caffe's"),
        ("cifar-resnet20", {}, "first layers are cifar's"),
    ],
)
def test_networks_without_an_equal_there_are_refused(name, options, said):
    with pytest.raises(UserError, match=said):
        torchvision_state_dict(build_model(name, **options))


def test_stride_is_no_matter_in_networks_of_basic_blocks():
    assert torchvision_state_dict(build_model("resnet18", stride="v1"))


def test_known_prefixes_and_names_become_torchvision_s():
    tensor = torch.zeros(1)
    known = {
        "module.conv1.weight": "conv1.weight",
        "module.layer1.0.conv1.weight": "layer1.0.conv1.weight",
        "module.linear.bias": "fc.bias",
        "linear.weight": "fc.weight",
        "layer2.0.shortcut.1.running_mean": "layer2.0.downsample.1.running_mean",
        "layer2.10.downsample.0.weight": "layer2.10.downsample.0.weight",
        "nonlinear.weight": "nonlinear.weight",
    }
    for theirs, ours in known.items():
        assert list(plain_names({theirs: tensor})) == [ours]


def test_a_misfit_names_one_of_each_kind_then_counts_the_rest():
    wanted = {name: torch.zeros(2) for name in "abcdef"}
    state = {**wanted, "d": torch.zeros(3), "e": torch.zeros(2, dtype=torch.int64), "x": torch.zeros(1)}
    del state["a"], state["b"]
    with pytest.raises(UserError) as error:
        check_fit(Path("w.pth"), state, wanted)
    assert str(error.value) == (
        "w.pth does not fit the network: a is missing, expected with shape [2]; x is not the network's; "
        "d has shape [3], expected [2]; e has dtype torch.int64, expected torch.float32 and 1 more"
    )
    check_fit(Path("w.pth"), dict(wanted), wanted)
