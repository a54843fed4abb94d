from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from resnet_pipeline.errors import UserError
from resnet_pipeline.models import Classifier, Normalize, build_model, depth_of, fully_convolutional, model_names
from resnet_pipeline.models.complexity import complexity

# Table 1: depth -> (kernels of a block, blocks per stage)
TABLE_1 = {
    18: ((3, 3), (2, 2, 2, 2)),
    34: ((3, 3), (3, 4, 6, 3)),
    50: ((1, 3, 1), (3, 4, 6, 3)),
    101: ((1, 3, 1), (3, 4, 23, 3)),
    152: ((1, 3, 1), (3, 8, 36, 3)),
}


def convolutions(network):
    """Return (name, kernel, stride, padding, inputs, outputs) of the convolutions on the main path."""
    return [
        (name, m.kernel_size[0], m.stride[0], m.padding[0], m.in_channels, m.out_channels)
        for name, m in network.named_modules()
        if isinstance(m, nn.Conv2d) and "downsample" not in name
    ]


def expected(depth, placement):
    kernels, blocks = TABLE_1[depth]
    rows = [("conv1", 7, 2, 3, 3, 64)]
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            halve = 2 if stage and block == 0 else 1
            for i, kernel in enumerate(kernels):
                strided = i == (0 if placement == "v1" else kernels.index(3))
                outputs = 4 * width if len(kernels) == 3 and i == 2 else width
                rows.append(
                    (
                        f"layer{stage + 1}.{block}.conv{i + 1}",
                        kernel,
                        halve if strided else 1,
                        kernel // 2,
                        channels,
                        outputs,
                    )
                )
                channels = outputs
    return rows


@pytest.mark.parametrize("depth", TABLE_1)
@pytest.mark.parametrize("placement", ["v1", "v1.5"])
def test_the_layers_are_those_of_table_1(depth, placement):
    with torch.device("meta"):
        network = build_model(f"resnet{depth}", stride=placement)
    rows = expected(depth, placement)
    assert convolutions(network) == rows
    assert len(rows) + 1 == depth == depth_of(f"resnet{depth}")
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("depth", TABLE_1)
def test_v1_5_with_projections_computes_what_torchvision_s_network_does(depth):
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(f"resnet{depth}", weights=None).eval()
    ours = build_model(f"resnet{depth}", shortcut="B", stride="v1.5").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain18", "plain34", "cifar-plain20"])
def test_a_plain_network_is_its_residual_twin_without_shortcuts(name):
    plain, residual = build_model(name), build_model(name.replace("plain", "resnet"), shortcut="A")
    assert convolutions(plain) == convolutions(residual)
    residual.load_state_dict(plain.state_dict())  # option A has no parameters
    for module in residual.modules():
        if hasattr(module, "downsample"):
            module.downsample = None
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(plain.eval()(images), residual.eval()(images))


def test_the_shortcuts_of_options_a_b_and_c():
    x = torch.randn(2, 64, 8, 8)
    networks = {option: build_model("resnet34", shortcut=option) for option in "ABC"}
    padded = networks["A"].layer2[0].downsample(x)
    assert torch.equal(padded[:, :64], x[:, :, ::2, ::2]) and padded.shape == (2, 128, 4, 4)
    assert not padded[:, 64:].any()
    projections = {
        o: sum(isinstance(m.downsample, nn.Sequential) for m in n.modules() if hasattr(m, "downsample"))
        for o, n in networks.items()
    }
    assert projections == {"A": 0, "B": 3, "C": 16}


@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize("kind", ["resnet", "plain", "highway"])
def test_cifar_networks_have_6n_plus_2_layers(kind, n):
    network = build_model(f"cifar-{kind}{6 * n + 2}")
    main = [row for row in convolutions(network) if "gate" not in row[0]]
    assert len(main) + 1 == 6 * n + 2
    assert [row[5] for row in main] == [16] * (2 * n + 1) + [32] * 2 * n + [64] * 2 * n
    assert sum(row[2] == 2 for row in main) == 2
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_highway_gates_start_nearly_closed_and_an_open_gate_transforms():
    block = build_model("cifar-highway20").layer1[0].eval()
    x = torch.rand(1, 16, 8, 8)
    block.gate.weight.data.zero_()
    assert block.gate.bias.unique().tolist() == [-2.0]
    block.gate.bias.data.fill_(-40)
    torch.testing.assert_close(block(x), x)
    block.gate.bias.data.fill_(40)
    torch.testing.assert_close(block(x), torch.relu(block.residual(x)))


def test_initialisation_is_he_s_and_follows_the_seed():
    torch.manual_seed(1)
    first = build_model("resnet18")
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), build_model("resnet18").parameters(), strict=True))
    weight = first.layer4[1].conv2.weight
    assert abs(weight.std().item() / (2 / (512 * 9)) ** 0.5 - 1) < 0.01


@pytest.mark.parametrize(
    ("name", "size", "parameters", "multiply_adds"),
    [
        ("resnet18", 224, None, 1.8e9),  # Table 1
        ("resnet34", 224, None, 3.6e9),
        ("resnet50", 224, 25.56e6, 3.858e9),  # the authors' release notes
        ("resnet101", 224, 44.55e6, 7.570e9),
        ("resnet152", 224, 60.19e6, 11.282e9),
        ("cifar-resnet20", 32, 0.27e6, None),  # Table 6
        ("cifar-resnet32", 32, 0.46e6, None),
        ("cifar-resnet44", 32, 0.66e6, None),
        ("cifar-resnet56", 32, 0.85e6, None),
        ("cifar-resnet110", 32, 1.7e6, None),
        ("cifar-resnet1202", 32, 19.4e6, None),
    ],
)
def test_complexity_is_the_paper_s(name, size, parameters, multiply_adds):
    with torch.device("meta"):
        cost = complexity(build_model(name), size)
    if parameters:
        assert cost.parameters == pytest.approx(parameters, rel=0.02 if name.startswith("cifar") else 2e-4)
    if multiply_adds:
        assert cost.multiply_adds == pytest.approx(multiply_adds, rel=0.02 if multiply_adds < 3.7e9 else 2e-4)
    assert sum(s.multiply_adds for s in cost.stages) == cost.multiply_adds
    assert sum(s.parameters for s in cost.stages) == cost.parameters


@pytest.mark.parametrize("name", ["resnet50", "plain34", "cifar-highway20"])
def test_complexity_agrees_with_pytorch_s_own_counter(name):
    from torch.utils.flop_counter import FlopCounterMode

    size = 32 if name.startswith("cifar") else 224
    with torch.device("meta"):
        network = build_model(name)
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, size, size))
    assert counter.get_total_flops() == 2 * complexity(network, size).multiply_adds


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet51", "18, 34, 50, 101, 152"),
        ("plain50", "18, 34"),
        ("resnte50", "resnet50"),
        ("cifar-resnet21", "6n+2"),
        ("highway20", "cifar-highway20"),
    ],
)
def test_unknown_networks_name_the_known_ones(name, said):
    with pytest.raises(UserError, match=said.replace("+", r"\+")):
        build_model(name)


def test_a_plain_network_takes_no_shortcut():
    with pytest.raises(UserError, match="no shortcuts"):
        build_model("plain34", shortcut="B")


def test_every_named_network_can_be_built():
    for name in model_names():
        with torch.device("meta"):
            assert build_model(name, num_classes=7).fc.out_features == 7


@pytest.mark.parametrize(
    ("name", "crop", "sizes"), [("resnet18", 224, [(256, 288)]), ("cifar-resnet8", 16, [(20, 24), (16, 16)])]
)
def test_the_fully_convolutional_form_slides_the_classifier(name, crop, sizes):
    torch.manual_seed(0)
    classifier = Classifier(Normalize(torch.tensor([120.0, 110.0, 100.0])), build_model(name, num_classes=5)).eval()
    dense = fully_convolutional(classifier, crop=crop).eval()
    for height, width in sizes:
        images = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
        with torch.inference_mode():
            scores = dense(images)
            features = classifier.network.features(classifier.normalize(images))
            window = dense.window
            for y in range(scores.shape[2]):
                for x in range(scores.shape[3]):
                    pooled = features[:, :, y : y + window, x : x + window].mean(dim=(2, 3))
                    torch.testing.assert_close(scores[:, :, y, x], classifier.network.fc(pooled), rtol=1e-4, atol=1e-5)
    images = torch.randint(0, 256, (2, crop, crop, 3), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(dense(images)[:, :, 0, 0], classifier(images), rtol=1e-4, atol=1e-5)


def test_normalize_subtracts_the_mean_adds_the_color_and_divides():
    images = torch.randint(0, 256, (3, 6, 5, 3), dtype=torch.uint8)
    mean_image, std, color = torch.rand(6, 5, 3) * 255, torch.tensor([50.0, 60.0, 70.0]), torch.randn(3, 3)
    slow = ((images.double() - mean_image + color[:, None, None]) / std).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(Normalize(mean_image, std)(images, color), slow)
    other = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    torch.testing.assert_close(Normalize(mean_image)(other), Normalize(mean_image.mean((0, 1)))(other))
    assert Normalize(mean_image)(images).is_contiguous(memory_format=torch.channels_last)
