from __future__ import annotations

import pytest
import torch

from resnet_pipeline.config import ConfigError, OptimConfig, ScheduleConfig
from resnet_pipeline.models import build_model
from resnet_pipeline.recipes import get_recipe, recipe_names
from resnet_pipeline.records import plain, read_record
from resnet_pipeline.training.optim import build_optimizer, set_lr
from resnet_pipeline.training.schedule import Schedule, ScheduleState
from resnet_pipeline.training.step import FiniteGuard


def test_sgd_is_caffe_s_also_when_the_rate_changes():
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3).double()
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-2))
    weights = [p.detach().clone() for p in model.parameters()]
    velocity = [torch.zeros_like(w) for w in weights]
    for step, lr in enumerate([0.1, 0.1, 0.1, 0.01, 0.01, 0.05]):
        gradients = [torch.randn_like(w) for w in weights]
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.grad = g.clone()
        set_lr(optimizer, lr)
        optimizer.step()
        for i, g in enumerate(gradients):  # Caffe's SGDSolver, written out
            velocity[i] = 0.9 * velocity[i] + lr * (g + 1e-2 * weights[i])
            weights[i] = weights[i] - velocity[i]
        for p, w in zip(model.parameters(), weights, strict=True):
            torch.testing.assert_close(p, w, rtol=1e-12, atol=1e-12), step


def test_lars_is_the_algorithm_of_its_paper_and_leaves_vectors_alone():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1)).double()
    torch.nn.init.zeros_(model[2].weight)  # a layer of zeros, whose rate is the others' base rate
    config = OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-2, decay_norm=False, trust=0.01)
    optimizer = build_optimizer(model, config)
    parameters = list(model.parameters())
    weights = [p.detach().clone() for p in parameters]
    velocity = [torch.zeros_like(w) for w in weights]
    for lr in (0.1, 0.2, 0.2, 0.05):
        gradients = [torch.randn_like(w) for w in weights]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        set_lr(optimizer, lr)
        optimizer.step()
        for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):  # You et al., 2017, Algorithm 1
            rate, decay = 1.0, 0.0
            if w.dim() > 1:
                decay = 1e-2
                rate = float(0.01 * w.norm() / (g.norm() + decay * w.norm())) if w.norm() > 0 else 1.0
            velocity[i] = 0.9 * velocity[i] + lr * rate * (g + decay * w)
            weights[i] = w - velocity[i]
        for p, w in zip(parameters, weights, strict=True):
            torch.testing.assert_close(p, w, rtol=1e-12, atol=1e-12)


def test_lars_wants_batch_norm_left_out():
    with pytest.raises(ConfigError, match=r"optim\.decay_norm to false"):
        OptimConfig(trust=0.001)
    with pytest.raises(ConfigError, match=r"optim\.trust"):
        OptimConfig(trust=0.0, decay_norm=False)


@pytest.mark.parametrize("trust", [None, 0.001])
def test_updates_stop_at_the_first_bad_gradient(trust):
    model = torch.nn.Linear(2, 1)
    optimizer = build_optimizer(model, OptimConfig(decay_norm=False, trust=trust))
    guard = FiniteGuard(optimizer, torch.device("cpu"))
    before = model.weight.detach().clone()
    for step, norm in enumerate([float("nan"), 1.0, float("inf")]):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        guard.observe(step + 5, torch.tensor(norm))
        optimizer.step()
    assert guard.bad_step() == 5
    assert torch.equal(model.weight, before)


def test_step_schedule_drops_at_the_paper_s_iterations():
    schedule = Schedule(ScheduleConfig(kind="step", boundaries=(32_000, 48_000)), lr=0.1, steps=64_000)
    rates = {step: schedule.lr(step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)}
    assert list(rates.values()) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_resnet_110_starts_low_until_its_error_is_below_80_percent():
    schedule = Schedule(ScheduleConfig(warmup_lr=0.01, warmup_until=80), lr=0.1, steps=10)
    schedule.observe_training(85.0)
    assert schedule.lr(300) == 0.01
    schedule.observe_training(79.0)
    schedule.observe_training(90.0)
    assert schedule.lr(400) == 0.1


def test_plateau_drops_after_patience_evaluations_without_improvement():
    schedule = Schedule(ScheduleConfig(kind="plateau", patience=2, threshold=0.5), lr=1.0, steps=10)
    rates = []
    for error in (50, 40, 39.8, 39.7, 30, 30, 30, 30, 30):
        schedule.observe_validation(error)
        rates.append(round(schedule.lr(0), 6))
    assert rates == [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001]


def test_a_plateau_s_rate_has_a_floor():
    config = get_recipe("imagenet/resnet50")
    schedule = Schedule(config.schedule, lr=config.optim.lr, steps=config.steps)
    rates = []
    for _ in range(config.steps // config.eval_every):  # an error that never falls again
        schedule.observe_validation(25.0)
        rates.append(schedule.lr(0))
    assert sorted(set(rates)) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    with pytest.raises(ConfigError, match=r"schedule\.most_drops"):
        ScheduleConfig(kind="plateau", most_drops=-1)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in recipe_names() if name.startswith(("imagenet/", "cifar10/"))])
def test_the_paper_s_recipes_decay_the_weights_of_convolutions_and_classifier_alone(recipe):
    config = get_recipe(recipe)
    model = build_model(config.model.name, shortcut=config.model.shortcut)
    decayed = {
        id(p)
        for group in build_optimizer(model, config.optim).param_groups
        for p in group["params"]
        if group["weight_decay"] == 1e-4
    }
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert decayed == {id(layer.weight) for layer in layers}


def test_cosine_ends_at_zero_after_a_linear_start():
    schedule = Schedule(ScheduleConfig(kind="cosine", warmup=4), lr=0.8, steps=104)
    assert [schedule.lr(s) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert schedule.lr(54) == pytest.approx(0.4)
    assert schedule.lr(104) == pytest.approx(0, abs=1e-12)


def test_the_rates_of_imagenet_fast():
    config = get_recipe("imagenet-fast/resnet50")
    schedule = Schedule(config.schedule, lr=config.optim.lr, steps=config.steps)
    warmup, steps = config.schedule.warmup, config.steps
    assert warmup == pytest.approx(5 * 1_281_167 / 1024, abs=1) and steps == pytest.approx(18 * warmup, rel=1e-3)
    assert schedule.lr(0) == pytest.approx(0.4 / warmup)
    assert schedule.lr(warmup - 1) == schedule.lr(warmup) == pytest.approx(0.4)
    assert schedule.lr((warmup + steps) // 2) == pytest.approx(0.2, rel=1e-4)
    assert 0 < schedule.lr(steps - 1) < 1e-8
    rates = [schedule.lr(s) for s in range(warmup, steps, 50)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(("family", "gpus"), [("imagenet-512", 16), ("imagenet-2k", 64), ("imagenet-8k", 256)])
def test_the_rates_of_a_large_batch(family, gpus):
    config = get_recipe(f"{family}/resnet50")
    assert config.micro_batches == gpus and config.micro_batch == 32
    schedule, epoch = Schedule(config.schedule, lr=config.optim.lr, steps=config.steps), config.steps / 90
    peak = 0.1 * config.batch / 256
    # Goyal et al., 2017, section 5.1
    for at, rate in ((2.5, peak / 2), (6, peak), (29, peak), (31, peak / 10), (61, peak / 100), (81, peak / 1000)):
        assert schedule.lr(round(at * epoch)) == pytest.approx(rate, rel=0.02)


def test_the_rates_of_the_largest_batch():
    config = get_recipe("imagenet-32k/resnet50")
    assert config.micro_batches == 512 and config.optim.trust == 0.001
    schedule, epoch = Schedule(config.schedule, lr=config.optim.lr, steps=config.steps), config.steps / 90
    # up to 32 in 14 epochs, then 32 · (1 - p)²
    for at, rate in ((7, 16), (14, 32), (14 + 76 / 2, 8), (14 + 76 * 0.9, 0.32)):
        assert schedule.lr(round(at * epoch)) == pytest.approx(rate, rel=0.02)
    assert schedule.lr(config.steps) == 0


def test_state_survives_json():
    schedule = Schedule(ScheduleConfig(kind="plateau", patience=1), lr=1.0, steps=10)
    for error in (50, 60, 45):
        schedule.observe_validation(error)
    again = Schedule(schedule.config, lr=1.0, steps=10, state=read_record(ScheduleState, plain(schedule.state)))
    assert again.lr(5) == schedule.lr(5) == pytest.approx(0.1)
