"""The learning rate of an iteration.

A schedule's rate depends on the iteration and on a small state (what the run has measured so far), which is plain
JSON and part of every checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from resnet_pipeline.config import ScheduleConfig


@dataclass(frozen=True)
class ScheduleState:
    """What the schedule remembers: whether the constant warm-up has ended, and the plateau's history."""

    warm: bool = False
    drops: int = 0
    best_error: float = math.inf
    stale: int = 0


class Schedule:
    """The learning rate of each iteration of a run of ``steps`` iterations from a base rate ``lr``.

    Example: ``Schedule(config.schedule, lr=config.optim.lr, steps=config.steps).lr(100)``
    """

    def __init__(self, config: ScheduleConfig, *, lr: float, steps: int, state: ScheduleState | None = None) -> None:
        self.config = config
        self.base = lr
        self.steps = steps
        self.state = state or ScheduleState(warm=config.warmup_lr is None)

    def lr(self, step: int) -> float:
        """Return the rate of the iteration that follows ``step`` finished ones."""
        config = self.config
        if not self.state.warm and config.warmup_lr is not None:
            return config.warmup_lr
        if step < config.warmup:
            return self.base * (step + 1) / config.warmup
        if config.kind in ("cosine", "square"):
            progress = min(1.0, (step - config.warmup) / max(1, self.steps - config.warmup))
            left = (1 - progress) ** 2 if config.kind == "square" else 0.5 * (1 + math.cos(math.pi * progress))
            return self.base * left
        drops = self.state.drops if config.kind == "plateau" else sum(step >= b for b in config.boundaries)
        return self.base * config.factor**drops

    def observe_training(self, error: float) -> None:
        """Take in the training error (percent) since the last log point."""
        if error < self.config.warmup_until:
            self.state = replace(self.state, warm=True)

    def observe_validation(self, error: float) -> None:
        """Take in a validation error (percent); on a plateau the rate drops and the count starts afresh.

        It drops ``most_drops`` times at most: else a finished training would go on to ever smaller rates.
        """
        state, most = self.state, self.config.most_drops
        if error < state.best_error - self.config.threshold:
            state = replace(state, best_error=error, stale=0)
        else:
            state = replace(state, stale=state.stale + 1)
        if state.stale >= self.config.patience:
            drops = state.drops + 1
            state = replace(state, drops=drops if most is None else min(drops, most), stale=0)
        self.state = state
