"""The whole state of a run between two steps: into a checkpoint and out of it."""

from __future__ import annotations

from typing import Protocol

import torch

from resnet_pipeline.config import Precision, RunConfig
from resnet_pipeline.models import Classifier
from resnet_pipeline.training.batch_norm import gather_statistics, load_statistics
from resnet_pipeline.training.checkpoint import Checkpoint, CheckpointError
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.distributed import all_gather
from resnet_pipeline.training.ema import WeightAverage
from resnet_pipeline.training.result import RunResult
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.schedule import Schedule, ScheduleState
from resnet_pipeline.training.step import RunningSums
from resnet_pipeline.training.throughput import Throughput


class RunState(Protocol):
    """What the loop's trainer holds of a run, as checkpoints and the result see it."""

    run: RunDirectory
    config: RunConfig
    context: Context
    precision: Precision
    identity: str
    step: int
    measured_from: int
    classifier: Classifier
    optimizer: torch.optim.SGD
    average: WeightAverage
    schedule: Schedule
    sums: RunningSums
    throughput: Throughput
    seconds_before: float
    last_train: dict[str, float]
    best: dict[str, float]
    errors: dict[str, float]


def capture(state: RunState) -> Checkpoint:
    """Return the state of all ranks; called on every rank. The tensors are the living ones, not copies."""
    world = state.context.world_size
    return Checkpoint(
        step=state.step,
        run=state.identity,
        model=state.classifier.state_dict(),
        optimizer=state.optimizer.state_dict(),
        statistics=gather_statistics(state.classifier, world),
        sums=all_gather(state.sums.state, world),
        extra={
            "schedule": state.schedule.state.to_dict(),
            "seconds": state.seconds_before + state.throughput.seconds,
            "last_train": state.last_train,
            "best": state.best,
        },
        ema=state.average.weights,
    )


def restore(state: RunState, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's state into a freshly built trainer; CheckpointError where its network is another.

    Where the number of ranks has changed, each takes the mean of the batch-norm statistics, and the first the total
    of the running sums.
    """
    try:
        state.classifier.load_state_dict(checkpoint.model)
        state.optimizer.load_state_dict(checkpoint.optimizer)
        state.average.load(checkpoint.ema)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} in {state.run.checkpoints} holds another network than this "
            f"version builds for the run: {' '.join(str(error).split())[:300]}"
        ) from None
    rank, device = state.context.rank, state.context.device
    statistics, sums = checkpoint.statistics.to(device), checkpoint.sums.to(device)
    same = len(statistics) == state.context.world_size
    load_statistics(state.classifier, statistics[rank] if same else statistics.mean(0))
    state.sums.load(sums[rank] if same else sums.sum(0) * (rank == 0))
    state.step = state.measured_from = checkpoint.step
    state.schedule.state = ScheduleState(**checkpoint.extra["schedule"])
    state.seconds_before = checkpoint.extra["seconds"]
    state.last_train = checkpoint.extra["last_train"]
    state.best = checkpoint.extra["best"]


def result_of(state: RunState, weights_sha256: str) -> RunResult:
    """Return the result of a finished run."""
    seconds = state.seconds_before + state.throughput.seconds
    images = state.config.steps * state.config.batch
    return RunResult(
        steps=state.config.steps,
        images=images,
        seconds=round(seconds, 3),
        images_per_second=round(images / seconds, 2) if seconds else 0.0,
        workers=state.context.world_size,
        device=str(state.context.device),
        precision=state.precision,
        train_loss=state.last_train.get("loss"),
        train_error=state.last_train.get("error"),
        validation=state.errors,
        best=state.best,
        weights_sha256=weights_sha256,
    )
