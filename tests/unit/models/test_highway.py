from __future__ import annotations

import pytest
import torch

from resnet_pipeline.models import build_model
from resnet_pipeline.models.highway import HighwayBlock


def test_gates_start_at_their_bias_and_carry_or_transform():
    network = build_model("cifar-highway20")
    gates = [m.gate for m in network.modules() if isinstance(m, HighwayBlock)]
    assert len(gates) == 9
    assert all(gate.bias.unique().tolist() == [-2.0] for gate in gates)
    assert build_model("cifar-highway20", gate_bias=-3.5).layer2[1].gate.bias.unique().tolist() == [-3.5]
    block = network.layer1[0].eval()
    x = torch.rand(1, 16, 8, 8)
    block.gate.weight.data.zero_()
    block.gate.bias.data.fill_(-40)
    torch.testing.assert_close(block(x), x)
    block.gate.bias.data.fill_(40)
    torch.testing.assert_close(block(x), torch.relu(block.residual(x)))


def test_a_block_mixes_by_its_gate_as_the_formula_says():
    torch.manual_seed(0)
    block = HighwayBlock(16, 32, 2, "A").eval()
    x = torch.rand(2, 16, 8, 8)
    gate = 1 / (1 + torch.exp(-block.gate(x)))
    slow = (block.residual(x) * gate + block.downsample(x) * (1 - gate)).clamp(min=0)
    torch.testing.assert_close(block(x), slow)


@pytest.mark.parametrize("depth", [20, 32])
def test_without_its_gates_a_highway_network_is_its_residual_twin(depth):
    highway, residual = build_model(f"cifar-highway{depth}"), build_model(f"cifar-resnet{depth}")
    state = {name: tensor for name, tensor in highway.state_dict().items() if ".gate." not in name}
    residual.load_state_dict(state)
    assert len(state) < len(highway.state_dict())


def test_every_gate_learns():
    torch.manual_seed(0)
    network = build_model("cifar-highway20")
    torch.nn.functional.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
