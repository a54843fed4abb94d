from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_pipeline.errors import UserError
from resnet_pipeline.models import build_model
from resnet_pipeline.models.blocks import Bottleneck
from resnet_pipeline.models.identity_extension import deepen
from resnet_pipeline.models.resnet import Architecture, ResNet


def trained(name, **options):
    """Return a network after two steps of SGD: batch norm has statistics, weights are not the initial ones."""
    torch.manual_seed(0)
    network = build_model(name, num_classes=10, **options)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
        optimizer.step()
    return network.eval()


def depth(network):
    main = [k for k, m in network.named_modules() if isinstance(m, nn.Conv2d) and "downs" not in k and "gate" not in k]
    return len(main) + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "blocks", "layers"),
    [
        ("plain18", {}, (3, 4, 6, 3), 34),  # figure 4's pair
        ("resnet18", {}, (3, 4, 6, 3), 34),
        ("resnet18", {"shortcut": "C"}, (3, 2, 4, 3), 26),
        ("resnet50", {}, (3, 4, 8, 4), 59),
        ("cifar-plain20", {}, (9, 9, 9), 56),  # figure 1's pair
        ("cifar-resnet20", {}, (9, 9, 9), 56),
        ("cifar-resnet20", {"shortcut": "B"}, (4, 3, 3), 22),
        ("cifar-highway20", {}, (5, 5, 5), 32),
        ("cifar-plain8", {}, (1, 1, 1), 8),
    ],
)
def test_the_deeper_network_computes_what_the_shallow_one_does(name, options, blocks, layers):
    shallow = trained(name, **options)
    deep = deepen(shallow, blocks)
    assert depth(deep) == layers
    images = torch.randn(8, 3, 32, 32) * 3
    with torch.inference_mode():
        expected = shallow(images)
        torch.testing.assert_close(deep(images), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        assert not torch.equal(expected[0], expected[1])


@pytest.mark.slow
def test_in_residual_networks_it_is_exact_in_training_too():
    shallow = trained("cifar-resnet20")
    deep = deepen(shallow, (9, 9, 9), checkpointing=3)
    images = torch.randn(4, 3, 32, 32)
    expected = shallow.train()(images)
    actual = deep.train()(images)
    assert torch.equal(actual, expected)
    actual.sum().backward()
    assert deep.layer1[8].bn2.weight.grad.abs().sum() > 0


def test_the_shallow_network_stays_as_it_is_and_shares_nothing():
    shallow = trained("cifar-resnet8")
    before = {key: value.clone() for key, value in shallow.state_dict().items()}
    deep = deepen(shallow, (2, 2, 2))
    for parameter in deep.parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[key], value) for key, value in shallow.state_dict().items())


@pytest.mark.parametrize("blocks", [(1, 1), (0, 1, 1), (1, 1, 1, 1)])
def test_a_network_that_is_not_deeper_is_refused(blocks):
    with pytest.raises(UserError, match=r"\[1, 1, 1\] blocks per stage"):
        deepen(build_model("cifar-resnet8"), blocks)


def test_a_plain_bottleneck_cannot_carry_its_input():
    network = ResNet(Architecture("imagenet", Bottleneck, [(1, 4)], "none"), num_classes=2)
    with pytest.raises(UserError, match="plain bottleneck"):
        deepen(network, (2,))
