"""SGD with momentum as the paper's authors ran it (Caffe's), on PyTorch's fused kernel; LARS beside it.

Caffe:   v = m·v + lr·g;  w = w − v       PyTorch:   u = m·u + g;  w = w − lr·u
The two are equal with v = lr·u while lr is constant. When lr changes, Caffe keeps v, and so the old rate's share of it.
PyTorch rescales the whole past at once. Multiplying u by old/new at each change makes PyTorch's update Caffe's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from resnet_pipeline.config import OptimConfig


class Lars(torch.optim.SGD):
    """SGD whose step first scales each layer's gradient by its own rate (You et al., 2017, equations 6 and 8).

    For a layer with weights w and gradient g:  λ = η · |w| / (|g| + decay · |w|);  the gradient is λ · (g + decay · w).
    A layer whose weights or gradients are all 0 keeps λ = 1. It applies to the groups that have a ``trust`` η and a
    ``decay``; the norms stay on the device.

    Example: ``Lars([{"params": weights, "trust": 0.001, "decay": 1e-4}], lr=32.0, momentum=0.9, fused=True)``
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Scale the gradients in place, then make SGD's step."""
        for group in self.param_groups:
            if "trust" not in group:
                continue
            parameters = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters]
            weight_norms = torch.stack(torch._foreach_norm(parameters))
            norms = torch.stack(torch._foreach_norm(gradients)) + group["decay"] * weight_norms
            rates = torch.where((weight_norms > 0) & (norms > 0), group["trust"] * weight_norms / norms, 1.0)
            torch._foreach_add_(gradients, parameters, alpha=group["decay"])
            torch._foreach_mul_(gradients, list(rates.unbind()))
        super().step(closure)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """Return SGD over all parameters that are not frozen; with ``decay_norm`` all of them decay.

    Without it the weights of convolutions and classifier do, as the paper's recipes have it (docs/DEVIATIONS.md says
    why); vectors (batch norm's scales and shifts, all biases) are groups of their own. With ``layer_decay`` each stage
    has groups of its own rate, the classifier's first, and ``scale`` is what it is of the whole. With ``trust`` it is
    `Lars`.

    Example: ``build_optimizer(network, get_recipe("digits/resnet8").optim)``
    """
    groups: list[dict[str, Any]] = []
    for rate, parameters in _by_rate(model, config.layer_decay):
        if config.decay_norm:
            groups.append({"params": parameters, **rate})
            continue
        scaled = {} if config.trust is None else {"trust": config.trust, "decay": config.weight_decay}
        groups.append({"params": [p for p in parameters if p.dim() > 1], **scaled, **rate})
        groups.append({"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0, **rate})
    if config.trust is not None:
        return Lars(groups, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


def _by_rate(model: nn.Module, layer_decay: float | None) -> Iterator[tuple[dict[str, float], list[nn.Parameter]]]:
    """Yield the parameters that are not frozen, those of one rate together, from the classifier down."""
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if layer_decay is None:
        yield {}, list(learned.values())
        return
    stages = {name: int(found[1]) for name in learned if (found := re.search(r"\blayer(\d+)\.", name))}
    top = max(stages.values(), default=0)
    below = {name: 0 if re.search(r"\bfc\.", name) else top + 1 - stages.get(name, 0) for name in learned}
    for depth in sorted(set(below.values())):
        yield {"scale": layer_decay**depth}, [p for name, p in learned.items() if below[name] == depth]


def set_lr(optimizer: torch.optim.SGD, lr: float) -> None:
    """Set the learning rate, times each group's ``scale``, and keep Caffe's momentum v = lr·u unchanged.

    Example: ``set_lr(optimizer, schedule.lr(step))``
    """
    for group in optimizer.param_groups:
        rate = lr * group["scale"] if "scale" in group else lr
        if group["lr"] == rate:
            continue
        buffers = [
            state["momentum_buffer"]
            for p in group["params"]
            if (state := optimizer.state.get(p)) and state.get("momentum_buffer") is not None
        ]
        if buffers:
            torch._foreach_mul_(buffers, group["lr"] / rate)
        group["lr"] = rate
