"""The whole state of a run between two steps: into a checkpoint, out of it, and to the result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from resnet_pipeline.config import Precision, RunConfig
from resnet_pipeline.training.batch_norm import gather_statistics, load_statistics
from resnet_pipeline.training.checkpoint import Checkpoint, CheckpointError, Progress
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.distributed import all_gather
from resnet_pipeline.training.ema import WeightAverage
from resnet_pipeline.training.optim import build_optimizer
from resnet_pipeline.training.result import RunResult
from resnet_pipeline.training.schedule import Schedule
from resnet_pipeline.training.step import RunningSums
from resnet_pipeline.training.tasks import Figures, Task


class TrainingState:
    """What a run has become after ``step`` optimiser steps, in one of its processes.

    ``run`` is the name that its checkpoints carry (`RunDirectory.identity`). What is not in here a checkpoint does not
    keep: order and augmentation are functions of the step.

    Example::

        state = TrainingState(task, config, LocalContext(), run="digits-…", precision="float32")
        state.load_state_dict(read_checkpoint(path, run="digits-…"))
    """

    def __init__(self, task: Task[Any], config: RunConfig, context: Context, *, run: str, precision: Precision) -> None:
        self.run, self.precision = run, precision
        network = task.network()
        network = network.double() if precision == "float64" else network
        self.network = network.to(context.device).to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.network, config.optim)
        self.average = WeightAverage(self.network, config.optim.ema)
        self.schedule = Schedule(config.schedule, lr=config.optim.lr, steps=config.steps)
        self.sums = RunningSums(task.counts, context.device)
        self.step = 0
        self.seconds = 0.0  # of training, in all attempts; validations don't count
        self.last_train: Mapping[str, float] = {}
        self.best: Mapping[str, float | int] = {}  # the lowest validation error so far, and its step
        self.errors: dict[str, float] = {}  # of the last validation of this attempt
        self._error_at: tuple[int, float] | None = None  # that validation's step and error
        self._task, self._config, self._context = task, config, context

    def state_dict(self) -> Checkpoint:
        """Return the state of all ranks; called on every rank. The tensors are the living ones, not copies."""
        world = self._context.world_size
        return Checkpoint(
            step=self.step,
            run=self.run,
            model=self.network.state_dict(),
            optimizer=self.optimizer.state_dict(),
            statistics=gather_statistics(self.network, world),
            sums=all_gather(self.sums.state, world),
            extra=Progress(
                schedule=self.schedule.state, seconds=self.seconds, last_train=self.last_train, best=self.best
            ),
            ema=self.average.weights,
        )

    def load_state_dict(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint's state over; CheckpointError if it is of another network.

        If the number of ranks has changed, each takes the mean of the batch-norm statistics, and the first the total of
        the running sums.
        """
        try:
            self.network.load_state_dict(checkpoint.model)
            self.optimizer.load_state_dict(checkpoint.optimizer)
            self.average.load(checkpoint.ema)
            rank, device = self._context.rank, self._context.device
            statistics, sums = checkpoint.statistics.to(device), checkpoint.sums.to(device)
            same = len(statistics) == self._context.world_size
            load_statistics(self.network, statistics[rank] if same else statistics.mean(0))
            self.sums.load(sums[rank] if same else sums.sum(0) * (rank == 0))
            self.step = checkpoint.step
            progress = checkpoint.extra
            self.schedule.state, self.seconds = progress.schedule, progress.seconds
            self.last_train, self.best = progress.last_train, progress.best
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"the checkpoint of step {checkpoint.step} of {self.run} holds another network than this version "
                f"builds for the run: {' '.join(str(error).split())[:300]}"
            ) from None

    def begin_with(self, weights: Path) -> None:
        """Take over a network that `save_weights` wrote, before the first step; UserError if it is another one."""
        self._task.begin_with(self.network, weights)
        self.average = WeightAverage(self.network, self._config.optim.ema)

    def take_training(self, found: Figures) -> None:
        """Take in what the steps since the last log point came to."""
        self.schedule.observe_training(found.decisive)
        self.last_train = dict(found.values)

    def take_validation(self, found: Figures) -> bool:
        """Take in a validation at this step; return whether its error is the lowest so far."""
        error = found.decisive
        self.schedule.observe_validation(error)
        self.errors, self._error_at = dict(found.values), (self.step, error)
        return self.take_test(self.step, found)

    def take_test(self, step: int, found: Figures) -> bool:
        """Take in the error of a step, this one or one before; return whether it is the lowest so far."""
        improved = not self.best or found.decisive < self.best[found.error]
        if improved:
            self.best = {"step": step, found.error: found.decisive}
        return improved

    @property
    def validated_error(self) -> float | None:
        """The validation error of this very step; None if it was not validated."""
        step, error = self._error_at or (-1, None)
        return error if step == self.step else None

    def result(self, weights_sha256: str) -> RunResult:
        """Return the result of the finished run."""
        images = self._config.steps * self._config.batch
        return RunResult(
            steps=self._config.steps,
            images=images,
            seconds=round(self.seconds, 3),
            images_per_second=round(images / self.seconds, 2) if self.seconds else 0.0,
            workers=self._context.world_size,
            device=str(self._context.device),
            precision=self.precision,
            train_loss=self.last_train.get("loss"),
            train_error=self.last_train.get("error"),
            validation=self.errors,
            best=self.best,
            weights_sha256=weights_sha256,
        )
