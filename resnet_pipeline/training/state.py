"""The whole state of a run between two steps: into a checkpoint and out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resnet_pipeline.training.batch_norm import gather_statistics, load_statistics
from resnet_pipeline.training.checkpoint import Checkpoint, CheckpointError
from resnet_pipeline.training.distributed import all_gather
from resnet_pipeline.training.schedule import ScheduleState

if TYPE_CHECKING:
    from resnet_pipeline.training.loop import Trainer


def capture(trainer: Trainer) -> Checkpoint:
    """Return the state of all ranks; called on every rank. The tensors are the living ones, not copies."""
    world = trainer.context.world_size
    return Checkpoint(
        step=trainer.step,
        run=trainer.identity,
        model=trainer.classifier.state_dict(),
        optimizer=trainer.optimizer.state_dict(),
        statistics=gather_statistics(trainer.classifier, world),
        sums=all_gather(trainer.sums.state, world),
        extra={
            "schedule": trainer.schedule.state.to_dict(),
            "seconds": trainer.seconds_before + trainer.throughput.seconds,
            "last_train": trainer.last_train,
            "best": trainer.best,
        },
        ema=trainer.average.weights,
    )


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's state into a freshly built trainer; CheckpointError where its network is another.

    Where the number of ranks has changed, each takes the mean of the batch-norm statistics, and the first the total
    of the running sums.
    """
    try:
        trainer.classifier.load_state_dict(checkpoint.model)
        trainer.optimizer.load_state_dict(checkpoint.optimizer)
        trainer.average.load(checkpoint.ema)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} in {trainer.run.checkpoints} holds another network than this "
            f"version builds for the run: {' '.join(str(error).split())[:300]}"
        ) from None
    rank, device = trainer.context.rank, trainer.context.device
    statistics, sums = checkpoint.statistics.to(device), checkpoint.sums.to(device)
    same = len(statistics) == trainer.context.world_size
    load_statistics(trainer.classifier, statistics[rank] if same else statistics.mean(0))
    trainer.sums.load(sums[rank] if same else sums.sum(0) * (rank == 0))
    trainer.step = trainer.measured_from = checkpoint.step
    trainer.schedule.state = ScheduleState(**checkpoint.extra["schedule"])
    trainer.seconds_before = checkpoint.extra["seconds"]
    trainer.last_train = checkpoint.extra["last_train"]
    trainer.best = checkpoint.extra["best"]
