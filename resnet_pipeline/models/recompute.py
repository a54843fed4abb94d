"""Activation checkpointing: keep the input of every few blocks and compute the rest again in the backward pass.

Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016. A block that is computed again does
not count its batch a second time in the running statistics of batch norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Stage(nn.Sequential):
    """Blocks one after another; in training with ``segment`` > 0 only every ``segment``-th block's input is kept.

    For B blocks that hold m maps each, about B / segment + m · segment maps live at the same time instead of B · m.
    Gradients and running statistics are those of the plain computation. Forward hooks of the blocks run twice.
    """

    def __init__(self, *blocks: nn.Module, segment: int = 0) -> None:
        super().__init__(*blocks)
        self.segment = segment

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] through the blocks."""
        blocks = list(self)
        if not (self.segment and self.training and torch.is_grad_enabled()):
            return _run(blocks, x)
        for start in range(0, len(blocks), self.segment):
            x = _run_checkpointed(blocks[start : start + self.segment], x)
        return x


def _run(blocks: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        x = block(x)
    return x


def _run_checkpointed(blocks: list[nn.Module], x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = checkpoint(
        _run,
        blocks,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in a block is random
        context_fn=lambda: (contextlib.nullcontext(), _without_counting(blocks)),
    )
    return result


@contextlib.contextmanager
def _without_counting(blocks: list[nn.Module]) -> Iterator[None]:
    """Inside, batch norm normalises by the batch's statistics as before, and leaves its running ones as they are.

    The operator still gets them, with weight 0 for the batch's. Without them it would save fewer tensors for the
    backward pass than the first computation did, and ``checkpoint`` takes that for an error.
    """
    layers = [m for block in blocks for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    saved = [(layer, layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, momentum, batches in saved:
            layer.momentum, layer.num_batches_tracked = momentum, batches
