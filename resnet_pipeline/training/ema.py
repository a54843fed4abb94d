"""An exponential moving average of the weights (Polyak and Juditsky, 1992; its decay as in Szegedy et al., 2015).

a = d · a + (1 − d) · w after each step. Batch-norm statistics are not averaged: the finished network's are computed
for the averaged weights (``batch_norm.recompute_statistics``).
"""

from __future__ import annotations

import torch
from torch import nn


class WeightAverage:
    """The average of a model's parameters; with ``decay`` 0 there is none and nothing is done.

    The decay of step t (from 0) is min(decay, (1 + t) / (10 + t)), so that the first, random weights are soon
    forgotten. It depends on the step alone, so a resumed run needs the averages and nothing else.

    Example: ``WeightAverage(network, decay=0.999).update(step)``
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters = dict(model.named_parameters()) if decay else {}
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}

    def update(self, step: int) -> None:
        """Take in the weights after step number ``step`` (from 0)."""
        if not self.weights:
            return
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.weights.values()), list(self._parameters.values()), 1 - decay)

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Set the averages from a checkpoint's."""
        for name, average in self.weights.items():
            average.copy_(weights[name])

    def copy_to_model(self) -> None:
        """Give the model the averaged weights."""
        with torch.no_grad():
            for name, average in self.weights.items():
                self._parameters[name].copy_(average)
