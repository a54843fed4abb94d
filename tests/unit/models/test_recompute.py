from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from resnet_pipeline.models import build_model


def step(network, images, labels):
    F.cross_entropy(network(images), labels).backward()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "segment"),
    [("resnet18", 1), ("resnet50", 2), ("cifar-resnet20", 2), ("cifar-highway20", 3), ("cifar-plain20", 99)],
)
def test_gradients_and_running_statistics_are_those_without_checkpointing(name, segment):
    torch.manual_seed(0)
    plain = build_model(name, num_classes=10)
    torch.manual_seed(0)
    checkpointed = build_model(name, num_classes=10, checkpointing=segment)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    for network in (plain, checkpointed):
        step(network, images, labels)
        # two graphs alive at once, and a cumulative average instead of a moving one
        network.layer2[0].bn1.momentum = None
        first, second = network(images.flip(0)), network(images.flip(3))
        F.cross_entropy(first + second, labels).backward()
    for (key, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
    for (key, a), b in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        assert torch.equal(a, b), key
    assert plain.layer1[0].bn1.num_batches_tracked == checkpointed.layer1[0].bn1.num_batches_tracked == 3


def test_fewer_tensors_are_kept_for_the_backward_pass():
    kept = {}
    for segment in (0, 3):
        network, count = build_model("cifar-resnet56", checkpointing=segment), 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(torch.randn(4, 3, 32, 32))
        kept[segment] = count
    assert kept[3] < kept[0] / 5


def test_evaluation_and_weights_know_nothing_of_it():
    network = build_model("cifar-resnet20", checkpointing=2)
    other = build_model("cifar-resnet20")
    other.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 32, 32)
    before = copy.deepcopy(network.state_dict())
    assert torch.equal(network.eval()(images), other.eval()(images))
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_a_failing_backward_pass_leaves_batch_norm_as_it_was():
    network = build_model("cifar-resnet8", checkpointing=1)
    loss = network(torch.randn(2, 3, 32, 32)).sum()

    def fail(module, inputs, output):
        raise RuntimeError("no memory")

    network.layer2[0].bn2.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        loss.backward()
    layers = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(m.momentum == 0.1 and m.num_batches_tracked == 1 for m in layers)


@pytest.mark.slow
def test_resnet_1202_trains_for_a_step():
    torch.manual_seed(0)
    network = build_model("cifar-resnet1202", checkpointing=14)
    step(network, torch.randn(2, 3, 32, 32), torch.tensor([3, 5]))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
