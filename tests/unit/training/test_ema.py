from __future__ import annotations

import torch

from resnet_pipeline.training.ema import WeightAverage


def test_the_average_is_the_formula_s_step_by_step():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    average = WeightAverage(model, 0.9)
    expected = [p.detach().clone() for p in model.parameters()]
    for step in range(300):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, model.parameters(), strict=True)]
    for found, value in zip(average.weights.values(), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
    average.copy_to_model()
    for p, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), value, rtol=1e-12, atol=1e-12)


def test_without_decay_nothing_is_held_and_the_model_stays():
    model = torch.nn.Linear(3, 2)
    average = WeightAverage(model, 0.0)
    before = model.weight.detach().clone()
    average.update(5)
    average.copy_to_model()
    assert average.weights == {} and torch.equal(model.weight, before)
