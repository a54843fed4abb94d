"""A run's metrics as tests read and write them."""

from __future__ import annotations

from resnet_pipeline.training.metrics_log import E, Pace, TrainEntry, entries_of, read_metrics
from resnet_pipeline.training.run_directory import RunDirectory


def entries(run: RunDirectory, kind: type[E]) -> list[tuple[int, E]]:
    """Return the entries of one kind in a run's history, each with its step."""
    return entries_of(read_metrics(run.metrics_file), kind)


def steps_of(run: RunDirectory, kind: type[E]) -> list[int]:
    return [step for step, _ in entries(run, kind)]


def losses(run: RunDirectory) -> list[float]:
    """Return the training losses of a run's log points."""
    return [entry.figures["loss"] for _, entry in entries(run, TrainEntry)]


def training(*, epoch: float = 0.5, images_per_second: float = 1000.0, **figures: float) -> TrainEntry:
    """Return an entry of training with these figures of a task."""
    pace = Pace(images_per_second=images_per_second, data_wait=0.0, step_p50=0.1, step_p95=0.2, step_max=0.3)
    return TrainEntry(epoch=epoch, lr=0.1, gradient_norm=1.5, figures=figures, shard_wait_seconds=0.0, pace=pace)
