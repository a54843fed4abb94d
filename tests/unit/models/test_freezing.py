"""Frozen layers: they stay as they are, and cost nothing but their forward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from resnet_pipeline.config import OptimConfig
from resnet_pipeline.models import build_model
from resnet_pipeline.training.batch_norm import moving_norms
from resnet_pipeline.training.optim import build_optimizer, set_lr

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 1


def kept_for_the_backward_pass(network: nn.Module) -> int:
    """Return the bytes that a forward pass in training keeps, weights left out."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network.train()(IMAGES)
    return sum(kept.values())


@pytest.mark.parametrize("name", ["cifar-resnet8", "cifar-plain8", "cifar-highway8"])
@pytest.mark.parametrize("stages", [0, 1, 3])
def test_what_is_frozen_stays_and_gets_no_gradient(name, stages):
    network = build_model(name)
    network.freeze(stages)
    before = copy.deepcopy(network.state_dict())
    optimizer = build_optimizer(network, OptimConfig(lr=0.1))
    for _ in range(2):
        optimizer.zero_grad()
        network.train()(IMAGES).sum().backward()
        optimizer.step()
        network.eval()
    frozen = ("conv1.", "bn1.", *(f"layer{i}." for i in range(1, stages + 1)))
    changed = {key for key, tensor in network.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed and not any(key.startswith(frozen) for key in changed)
    assert {key.split(".")[0] for key in changed} == {f"layer{i}" for i in range(stages + 1, 4)} | {"fc"}
    assert all((p.grad is None) == key.startswith(frozen) for key, p in network.named_parameters())


def test_the_more_is_frozen_the_less_is_kept_for_the_backward_pass():
    kept = []
    for stages in (None, 0, 1, 2, 3):
        network = build_model("cifar-resnet8")
        network.freeze(stages)
        kept.append(kept_for_the_backward_pass(network))
    assert sorted(kept, reverse=True) == kept and len(set(kept)) == 5
    assert kept[-1] <= 4 * 64 * 4, "the classifier needs its inputs"


def test_norm_eval_keeps_statistics_and_learns_scales():
    network = build_model("cifar-resnet8")
    network.freeze(norm_eval=True)
    statistics = {key: t.clone() for key, t in network.state_dict().items() if "running" in key or "tracked" in key}
    network.train()(IMAGES).sum().backward()
    assert all(torch.equal(network.state_dict()[key], t) for key, t in statistics.items())
    assert all(p.grad is not None for p in network.parameters())
    assert moving_norms(network) == [] and len(moving_norms(build_model("cifar-resnet8"))) == 7
    network.eval()
    expected = network(IMAGES)
    assert torch.equal(network.train()(IMAGES), expected), "it computes what it is tested with"


@pytest.mark.parametrize("decay_norm", [True, False])
def test_each_stage_has_a_rate_of_its_own(decay_norm):
    network = build_model("cifar-resnet8")
    network.freeze(0)
    config = OptimConfig(lr=0.1, layer_decay=0.5, decay_norm=decay_norm)
    optimizer = build_optimizer(network, config)
    set_lr(optimizer, 0.08)
    names = {id(p): name for name, p in network.named_parameters()}
    rates = {names[id(p)].split(".")[0]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {"fc": 0.08, "layer3": 0.04, "layer2": 0.02, "layer1": 0.01}
    assert optimizer.param_groups[0]["lr"] == 0.08, "what is logged"
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(learned) == len({id(p) for p in learned}) == sum(p.requires_grad for p in network.parameters())
    vectors = [g for g in optimizer.param_groups if all(p.dim() == 1 for p in g["params"])]
    assert {g["weight_decay"] for g in vectors} == (set() if decay_norm else {0.0})


def test_a_decay_of_one_is_the_update_without_it():
    networks = [build_model("cifar-resnet8")]
    networks.append(copy.deepcopy(networks[0]))
    for network, decay in zip(networks, (None, 1.0), strict=True):
        optimizer = build_optimizer(network, OptimConfig(lr=0.1, layer_decay=decay, decay_norm=False))
        for rate in (0.1, 0.05):
            set_lr(optimizer, rate)
            optimizer.zero_grad()
            network(IMAGES).square().sum().backward()
            optimizer.step()
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
