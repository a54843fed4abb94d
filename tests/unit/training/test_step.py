from __future__ import annotations

import copy
import itertools

import pytest
import torch

from resnet_pipeline.config import OptimConfig
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.loaders import Batch
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.optim import build_optimizer
from resnet_pipeline.training.step import FiniteGuard, RunningSums, train_step
from resnet_pipeline.training.tasks import ClassificationTask

CPU = torch.device("cpu")


@pytest.fixture
def batches() -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randint(0, 256, (16, 16, 16, 3), generator=draw, dtype=torch.uint8),
            torch.randint(0, 10, (16,), generator=draw),
            torch.arange(16),
            torch.randn(16, 3, generator=draw),
        )
        for _ in range(2)
    ]


def network() -> Classifier:
    torch.manual_seed(0)
    return Classifier(Normalize(torch.full((3,), 127.0)), build_model("cifar-resnet8"))


def run(model: Classifier, batches: list[Batch], *, steps: int = 1, label_smoothing: float = 0.0, **options):
    """Run some steps; return the losses and the last gradients."""
    config = with_overrides(get_recipe("digits/resnet8"), {"optim.label_smoothing": label_smoothing})
    task = ClassificationTask(config, None, LocalContext())  # without a dataset: these are its batches
    optimizer = build_optimizer(model, OptimConfig())
    guard, sums, losses = FiniteGuard(optimizer, CPU), RunningSums(task.counts, CPU), []
    if options.get("keep_gradients"):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
    for step in range(steps):
        train_step(model, task, optimizer, guard, sums, batches, step=step, **options)
        losses.append(task.training_figures(sums.read()).values["loss"])
    return losses, [p.grad.clone() for p in model.parameters()]


def test_label_smoothing_is_the_formula_s(batches):
    model = network()
    expected = 0.0
    for batch in batches:
        log_p = model(batch.images, batch.color).detach().double().log_softmax(1)
        target = torch.full_like(log_p, 0.1 / 10)
        target[torch.arange(16), batch.labels] += 0.9
        expected += float(-(target * log_p).sum(1).mean()) / 2
    (loss,), _ = run(network(), batches, label_smoothing=0.1)
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_bf16_is_near_float32_and_float64_nearer(batches):
    single, gradients = run(network(), batches, steps=5)
    brain, rough = run(network(), batches, steps=5, precision="bf16")
    double, exact = run(network().double(), batches, steps=5, precision="float64")
    assert brain == pytest.approx(single, rel=0.05)
    assert double == pytest.approx(single, rel=1e-4)
    # bfloat16 has 8 bits: it must differ, or nothing was computed in it
    assert brain[0] != single[0] and all(g.dtype == torch.float32 for g in rough)
    assert all(g.dtype == torch.float64 for g in exact) and gradients[0].dtype == torch.float32


@pytest.mark.slow
def test_kept_gradients_are_the_same(batches):
    losses, gradients = run(network(), batches, steps=3)
    again, kept = run(network(), batches, steps=3, keep_gradients=True)
    assert losses == again
    for a, b in zip(gradients, kept, strict=True):
        assert torch.equal(a, b)


def test_batch_norm_and_biases_can_be_spared_the_decay(batches):
    model = network()
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5, decay_norm=False))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kinds = set()
    for name, p in model.named_parameters():
        vector = p.dim() == 1
        expected = before[name] if vector else before[name] * (1 - 0.1 * 0.5)
        torch.testing.assert_close(p.detach(), expected, msg=name)
        kinds.add(vector)
    assert kinds == {True, False}
    assert len(list(itertools.chain(*(g["params"] for g in optimizer.param_groups)))) == len(list(model.parameters()))
