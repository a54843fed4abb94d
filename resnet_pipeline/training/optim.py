"""SGD with momentum as the paper's authors ran it (Caffe's), on PyTorch's fused kernel.

Caffe:   v = m·v + lr·g;  w = w − v       PyTorch:   u = m·u + g;  w = w − lr·u
The two are equal with v = lr·u while lr is constant. When lr changes, Caffe keeps v, and so the old rate's share of it.
PyTorch rescales the whole past at once. Multiplying u by old/new at each change makes PyTorch's update Caffe's.
"""

from __future__ import annotations

import torch
from torch import nn

from resnet_pipeline.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.SGD:
    """Return SGD over all parameters; with ``decay_norm`` all of them decay, in one group.

    Without it the weights of convolutions and classifier do, as the paper's recipes have it (docs/DEVIATIONS.md says
    why); vectors (batch norm's scales and shifts, all biases) are a group of their own.

    Example: ``build_optimizer(network, get_recipe("digits/resnet8").optim)``
    """
    parameters = list(model.parameters())
    groups: list[dict[str, object]] = [{"params": parameters}]
    if not config.decay_norm:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


def set_lr(optimizer: torch.optim.SGD, lr: float) -> None:
    """Set the learning rate and keep Caffe's momentum v = lr·u unchanged.

    Example: ``set_lr(optimizer, schedule.lr(step))``
    """
    for group in optimizer.param_groups:
        if group["lr"] == lr:
            continue
        buffers = [
            state["momentum_buffer"]
            for p in group["params"]
            if (state := optimizer.state.get(p)) and state.get("momentum_buffer") is not None
        ]
        if buffers:
            torch._foreach_mul_(buffers, group["lr"] / lr)
        group["lr"] = lr
