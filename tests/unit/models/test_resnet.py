from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from resnet_pipeline.models import build_model, depth_of

# Table 1: depth -> (kernels of a block's convolutions and their filters in units of the stage's width, blocks)
BASIC, BOTTLENECK = ((3, 1), (3, 1)), ((1, 1), (3, 1), (1, 4))
TABLE_1 = {
    18: (BASIC, (2, 2, 2, 2)),
    34: (BASIC, (3, 4, 6, 3)),
    50: (BOTTLENECK, (3, 4, 6, 3)),
    101: (BOTTLENECK, (3, 4, 23, 3)),
    152: (BOTTLENECK, (3, 8, 36, 3)),
}
OUTPUT_SIZES = (112, 56, 28, 14, 7)  # Table 1, first columns, for a 224 × 224 image


def table_1(depth, placement):
    """Return (layer, kernel, stride, padding, inputs, outputs, size of its map) as the paper's text says them."""
    block, counts = TABLE_1[depth]
    rows = [("conv1", 7, 2, 3, 3, 64, 112)]
    channels = 64
    for stage, (count, width, size) in enumerate(zip(counts, (64, 128, 256, 512), OUTPUT_SIZES[1:], strict=True)):
        for number in range(count):
            # "Downsampling is performed by conv3_1, conv4_1, and conv5_1 with a stride of 2"
            downsampling = stage > 0 and number == 0
            strided = 1 if len(block) == 3 and placement == "v1.5" else 0
            for i, (kernel, times) in enumerate(block):
                stride = 2 if downsampling and i == strided else 1
                before = downsampling and i < strided
                rows.append(
                    (
                        f"layer{stage + 1}.{number}.conv{i + 1}",
                        kernel,
                        stride,
                        (kernel - 1) // 2,
                        channels,
                        width * times,
                        2 * size if before else size,
                    )
                )
                channels = width * times
    return rows


def executed(network, size):
    """Return the same of the convolutions of the main path, in the order in which they ran."""
    rows = []
    for name, m in network.named_modules():
        if isinstance(m, nn.Conv2d) and "downsample" not in name and "gate" not in name:

            def hook(m, inputs, output, name=name):
                (kernel,), (stride,), (padding,) = set(m.kernel_size), set(m.stride), set(m.padding)
                rows.append((name, kernel, stride, padding, m.in_channels, m.out_channels, output.shape[2]))

            m.register_forward_hook(hook)
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, size, size, device=network.fc.weight.device))
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["v1", "v1.5"])
@pytest.mark.parametrize("name", ["plain18", "plain34", *(f"resnet{depth}" for depth in TABLE_1)])
def test_the_layers_are_those_of_table_1(name, placement):
    depth = int(name.removeprefix("plain").removeprefix("resnet"))
    with torch.device("meta"):
        network = build_model(name, stride=placement)
    rows = table_1(depth, placement)
    assert executed(network, 224) == rows
    assert len(rows) + 1 == depth == depth_of(name)
    assert network.fc.in_features == rows[-1][5] and network.fc.out_features == 1000
    pool = network.maxpool  # "3×3 max pool, stride 2"
    assert (pool.kernel_size, pool.stride) == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain34", "resnet34", "resnet50", "cifar-resnet20", "cifar-highway20"])
def test_every_convolution_is_followed_by_batch_norm_and_has_no_bias(name):
    ran = []
    network = build_model(name).eval()
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(lambda m, i, o: ran.append(m))
    network(torch.zeros(1, 3, 32, 32))
    gates = [m for key, m in network.named_modules() if key.endswith(".gate")]
    ran = [m for m in ran if m not in gates]
    assert [type(m) for m in ran] == [nn.Conv2d, nn.BatchNorm2d] * (len(ran) // 2)
    assert all(m.bias is None and n.num_features == m.out_channels for m, n in zip(ran[::2], ran[1::2], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("depth", TABLE_1)
@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_v1_5_with_projections_computes_what_the_libraries_networks_do(depth, library):
    torch.manual_seed(0)
    make = torchvision.models.get_model if library == "torchvision" else timm.create_model
    theirs = make(f"resnet{depth}").eval()
    ours = build_model(f"resnet{depth}", shortcut="B", stride="v1.5").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain18", "plain34", "cifar-plain20"])
def test_a_plain_network_is_its_residual_twin_without_shortcuts(name):
    plain, residual = build_model(name), build_model(name.replace("plain", "resnet"), shortcut="A")
    assert executed(plain, 64) == executed(residual, 64)
    residual.load_state_dict(plain.state_dict())  # option A has no parameters
    images = torch.randn(2, 3, 64, 64)
    assert not torch.allclose(plain.eval()(images), residual.eval()(images))
    for module in residual.modules():
        if hasattr(module, "downsample"):
            module.downsample = None
    assert torch.equal(plain(images), residual(images))


@pytest.mark.slow
def test_initialisation_is_he_s_and_follows_the_seed():
    torch.manual_seed(1)
    first = build_model("resnet18")
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), build_model("resnet18").parameters(), strict=True))
    for weight in (first.conv1.weight, first.layer1[0].conv1.weight, first.layer4[1].conv2.weight):
        expected = (2 / weight[0].numel()) ** 0.5  # sqrt(2 / n), n the number of a neuron's inputs
        assert weight.std().item() == pytest.approx(expected, rel=0.02)
        assert abs(weight.mean().item()) < 0.02 * expected


@pytest.mark.parametrize("size", [224, 225, 64, 47])
def test_caffe_s_pooling_sees_windows_without_padding_and_rounds_up(size):
    x = torch.rand(1, 1, size, size)
    pool = build_model("resnet18", pooling="caffe").maxpool
    count = -(-(size - 3) // 2) + 1  # Caffe's PoolingLayer: ceil((H − kernel) / stride) + 1
    slow = torch.stack(
        [torch.stack([x[..., 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].amax() for j in range(count)]) for i in range(count)]
    )
    assert torch.equal(pool(x)[0, 0], slow)
    if size == 224:
        padded = build_model("resnet18").maxpool(x)
        assert padded.shape[-1] == count and not torch.equal(padded[0, 0], slow)
