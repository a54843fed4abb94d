"""The training loop: the same in one process, under torchrun and under Ray Train, and for every task.

Everything is counted in optimiser steps. The loop writes metrics, checkpoints and the result into the run directory
and knows nothing of who started it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend
from resnet_pipeline.device import EMULATION, chosen_precision, has_bf16, prepare_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.logs import at_step, log_context
from resnet_pipeline.settings import torchrun
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.training.attempt import Attempt, noting
from resnet_pipeline.training.batch_norm import (
    averaged_statistics,
    gather_statistics,
    load_statistics,
    moving_norms,
    recompute_statistics,
)
from resnet_pipeline.training.blame import bad_samples, blame
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.distributed import Notice, Notices, collective_timeout, distribute, from_rank_zero
from resnet_pipeline.training.footprint import check_memory, explained
from resnet_pipeline.training.handouts import Handouts
from resnet_pipeline.training.metrics_log import CheckpointEntry, SystemEntry, TrainEntry, ValidationEntry
from resnet_pipeline.training.mirror import keep
from resnet_pipeline.training.optim import set_lr
from resnet_pipeline.training.profile import LEAST_STEPS, Profile
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.signals import PROFILE
from resnet_pipeline.training.state import TrainingState
from resnet_pipeline.training.step import FiniteGuard, compile_network, train_step
from resnet_pipeline.training.system import SystemMetrics
from resnet_pipeline.training.tasks import ClassificationTask, Figures, OpenBatches, Task
from resnet_pipeline.training.throughput import Throughput
from resnet_pipeline.training.watchdog import HangError, Watchdog

_log = logging.getLogger(__name__)

Clock = Callable[[], float]

_SECONDS_BETWEEN_LOOKS = 0.2  # for the tests of others
_SECONDS_BETWEEN_CHECKS = 2.0  # at the launcher's warnings: asking it may take some milliseconds


class NonFiniteError(UserError):
    """The loss or a gradient was NaN or infinite; the weights are those of before that step."""


def train(
    run: RunDirectory,
    dataset: Dataset,
    context: Context,
    *,
    backend: Backend = "auto",
    mirror: Storage | None = None,
    aside: bool = False,
    task: Task[Any] | None = None,
) -> bool:
    """Train the run to its end, from its newest checkpoint if it has one, here or in the ``mirror``.

    With ``aside`` networks of mid-training are handed out for somebody else to test (`handouts`), and training goes on
    meanwhile; the schedule must not follow their errors. ``task`` None is classification. Returns True when the run is
    finished and its result written, False when it was asked to stop and has saved its state. Raises ConfigError if the
    workers can't share the batch, NoRoomError if a step does not fit into the memory, CheckpointError, NonFiniteError,
    HangError if another process does not answer, and what the loader raises.

    Example: ``train(RunDirectory.create(folder, config, dataset.facts), dataset, LocalContext())``
    """
    if from_rank_zero(run.result_file.exists(), context.world_size):
        return True
    with log_context(run=run.name, rank=context.rank), noting(run):
        return _train(run, dataset, context, backend=backend, mirror=mirror, aside=aside, task=task)


def _train(run: RunDirectory, dataset: Dataset, context: Context, **options: Any) -> bool:
    limit = collective_timeout().total_seconds()
    trainer = None
    try:
        trainer = Trainer(run, dataset, context, **options)
        return trainer.run_to_end()
    except RuntimeError as error:
        if no_room := explained(error, run.config()):
            raise no_room from error
        # gloo says either, depending on which end of a connection noticed
        alone = context.world_size == 1
        if alone or not any(words in str(error).lower() for words in ("timed out", "timeout")):
            raise
        where = f"at step {trainer.state.step}" if trainer else "at the start"
        message = f"a worker did not answer rank {context.rank} for {limit:.0f} s {where}; this attempt ends"
        _log.warning("%s", message)
        raise HangError(f"{message}, and the run resumes from its newest checkpoint") from error
    finally:
        if trainer:
            trainer.close()


class Trainer:
    """A run in one of its processes: its state, and what advances, measures, writes and watches it.

    ``task`` None is classification, ``open_batches`` None the task's own; ``clock`` returns seconds.

    Example: ``Trainer(run, dataset, LocalContext()).run_to_end()``
    """

    def __init__(
        self,
        run: RunDirectory,
        dataset: Dataset,
        context: Context,
        *,
        backend: Backend = "auto",
        mirror: Storage | None = None,
        aside: bool = False,
        task: Task[Any] | None = None,
        open_batches: OpenBatches[Any] | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.config = config = run.config()
        dataset = dataset.trained_on(config.train_share)
        self.run, self.dataset, self.context, self.clock = run, dataset, context, clock
        config.check_workers(context.world_size)
        # the network, on the device in its precision
        # rank 0's choice: the others may run on other hardware
        precision = from_rank_zero(chosen_precision(config.precision, context.device), context.world_size)
        prepare_device(context.device, precision)
        self.task = task or ClassificationTask(config, dataset, context, backend=backend)
        self.open_batches = open_batches or self.task.batches
        self.state = TrainingState(self.task, config, context, run=run.identity(), precision=precision)
        check_memory(self.state.network, config, precision, torchrun().local_world_size)
        self.attempt = Attempt(run, self.state, context, mirror)
        self.handouts = Handouts(run) if aside else None
        if context.rank == 0:
            Handouts(run).discard(beyond=self.state.step if aside else 0)
        if precision == "bf16" and context.rank == 0 and not has_bf16(context.device):
            _log.warning("this processor has no bf16 and emulates it: %s; precision=auto avoids that", EMULATION)
        self.model: nn.Module = self.state.network
        self.compiled = config.compile and compile_network(self.model, context.device)
        if context.world_size > 1:
            self.model = distribute(self.model, context.device)
        self.guard = FiniteGuard(self.state.optimizer, context.device)
        # what watches over the attempt
        self.watchdog = Watchdog(2 * collective_timeout().total_seconds(), lambda: f"after step {self.state.step}")
        self.notices = Notices(context.world_size)
        self._checked = clock()
        self.throughput = Throughput(clock)
        self.system = SystemMetrics(context.device)
        self.profile: Profile | None = None
        left = config.steps - self.state.step
        if (
            from_rank_zero(context.rank == 0 and run.signals.get(PROFILE) is not None, context.world_size)
            and left >= LEAST_STEPS
        ):
            self.profile = Profile(run.profile, rank=context.rank, device=context.device, steps=left)

    def run_to_end(self) -> bool:
        """Run the remaining steps and write the result; False when asked to stop before the end."""
        config, state = self.config, self.state
        with self.open_batches(state.step, config.steps - state.step) as batches:
            self.model.train()
            if state.step == 0 and config.model.initial_head == "kept":
                self.test()  # what the run begins with is a network that has learned something
            while state.step < config.steps:
                # the mean gradient over all ranks' micro-batches, and the update
                self.one_step(batches)
                # what any rank was told; all know it at the same step
                notice = self.notices.exchange(self._notice())
                if self._at(config.log_every):
                    self.log()
                # in mid-training: the finished network is validated by `finish`
                improved = self._at(config.eval_every) and state.step < config.steps and self.test()
                # if a node will be gone its state is saved, and training goes on until then
                warned = notice >= Notice.LOOK and self.context.should_save()
                stopping = notice is Notice.STOP and state.step < config.steps
                if self._at(config.checkpoint_every) or improved or warned or stopping:
                    self.save()
                # asked to stop, by whoever: the same run, started again, resumes from here
                if stopping:
                    self.attempt.wait()
                    self.notices.close()
                    return False
        self.notices.close()
        if self.handouts:
            self._await_answers(self.handouts)
        self.finish()
        return True

    def close(self) -> None:
        """Wait for what is still being written, and watch no more."""
        self.watchdog.close()
        self.attempt.close()

    def one_step(self, batches: Iterator[Any]) -> None:
        """Take this rank's next micro-batches and make an optimiser step with all ranks."""
        state = self.state
        self.watchdog.alive()
        with self.throughput.step(self.config.batch):
            local = self.config.micro_batches // self.context.world_size
            with self.throughput.waiting():
                micro_batches = [next(batches) for _ in range(local)]
            set_lr(state.optimizer, state.schedule.lr(state.step))
            self.gradient_norm = train_step(
                self.model,
                self.task,
                state.optimizer,
                self.guard,
                state.sums,
                micro_batches,
                step=state.step,
                precision=state.precision,
                keep_gradients=self.compiled,
            )
            state.average.update(state.step)
            state.step += 1
        at_step(state.step)
        if self.profile:
            self._profile(self.profile)

    def log(self) -> None:
        """Write a line of what the steps since the last log point came to; the schedule takes it in."""
        self._check_finite()
        self.attempt.check_owner()
        found = self.task.training_figures(self.state.sums.read())
        self.state.take_training(found)
        self.state.seconds += self.throughput.elapsed()
        entry = TrainEntry(
            epoch=self.state.step * self.config.batch / len(self.dataset.splits["train"]),
            lr=self.state.optimizer.param_groups[0]["lr"],
            gradient_norm=float(self.gradient_norm),
            figures=found.values,
            shard_wait_seconds=round(self.dataset.shard_wait, 3),
            pace=self.throughput.read(),
        )
        self.attempt.append(entry)
        self.context.show(self.state.step, entry.pace)
        if self.context.rank == 0 and self.system.due():
            self.attempt.append(SystemEntry(values=self.system.read()))
        if self.handouts and self.context.rank == 0:
            self._take_answers(self.handouts)

    def test(self) -> bool:
        """Test the network of mid-training, or hand it out; return whether its error is the lowest so far, if known."""
        if self.handouts is None:
            return self.validate()
        self.attempt.check_owner()
        network = self.state.network
        with self.throughput.paused(), averaged_statistics(network, self.context.world_size):
            if self.context.rank == 0:
                try:
                    self.handouts.hand_out(self.state.step, network)
                except (OSError, UserError) as error:  # a test may fail, training goes on
                    _log.warning("the network of step %d can't be handed out: %s", self.state.step, error)
        return False

    def validate(self) -> bool:
        """Test the network and note the result; return whether the error is the lowest so far."""
        network = self.state.network
        with self.throughput.paused(), averaged_statistics(network, self.context.world_size):
            found = self.task.validate(network, self.watchdog.alive)
        improved = self.state.take_validation(found)
        self.attempt.append(ValidationEntry(figures=found.values))
        # at validations only: under Ray a report is a barrier, and frequent ones block (its controller polls)
        self.context.report({"step": float(self.state.step), **found.values})
        return improved

    def save(self) -> None:
        """Write a checkpoint, of all ranks' states, behind the training's back."""
        self._check_finite()
        self.attempt.check_owner()
        self.state.seconds += self.throughput.elapsed()
        start = self.clock()
        held = self.attempt.save(self.state.state_dict(), val_error=self.state.validated_error)
        self.attempt.append(CheckpointEntry(pause=round(self.clock() - start, 5), bytes=held))

    def finish(self) -> None:
        """Make the finished network of the state, test it, and write weights and result."""
        config, network, world = self.config, self.state.network, self.context.world_size
        self.state.average.copy_to_model()
        if config.bn_images and moving_norms(network):
            steps = max(1, min(config.bn_images, len(self.dataset.splits["train"])) // config.batch)
            with self.open_batches(config.steps, steps) as batches:
                recompute_statistics(network, batches, self.task.forward, self.context.device)
        else:
            load_statistics(network, gather_statistics(network, world).mean(0))
        self.validate()
        self.attempt.check_owner()
        self.attempt.finish()

    def _take_answers(self, handouts: Handouts) -> None:
        """Note what the tests of others came to; rank 0 alone knows it, and nothing that is trained depends on it."""
        for step, answer in handouts.answers():
            best = False
            if answer.problem is not None:
                _log.warning("the network of step %d was not tested: %s", step, answer.problem)
            else:
                found = Figures(dict(answer.figures), answer.error)
                best = self.state.take_test(step, found)
                self.attempt.append(ValidationEntry(figures=found.values), step=step)
            handouts.settle(step, best=best)

    def _await_answers(self, handouts: Handouts) -> None:
        """Wait for the tests of others, whose lowest error is a part of the result; a stop ends the waiting."""

        def unanswered() -> bool:
            if self.context.rank == 0:
                self._take_answers(handouts)
            return bool(handouts.asked()) and not self.context.should_stop()

        while from_rank_zero(unanswered(), self.context.world_size):
            self.watchdog.alive()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        if self.context.rank == 0:
            handouts.discard(beyond=0)

    def _at(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.config.steps

    def _notice(self) -> Notice:
        if self.context.should_stop():
            return Notice.STOP
        if self.context.rank == 0 and self.clock() - self._checked > _SECONDS_BETWEEN_CHECKS:
            self._checked = self.clock()
            return Notice.LOOK
        return Notice.NONE

    def _profile(self, profile: Profile) -> None:
        entry = profile.after_step(self.model, self.throughput.waited)
        if entry:
            self.attempt.append(entry)
            keep(self.run, profile.file)
            if self.context.rank == 0:
                self.run.signals.remove(PROFILE)
            self.profile = None

    def _check_finite(self) -> None:
        bad = self.guard.bad_step()
        if bad is not None:
            raise NonFiniteError(self._blame(bad))

    def _blame(self, step: int) -> str:
        state, key_of = self.state, self.dataset.splits["train"].key_of
        with self.open_batches(step, 1) as batches:
            index = bad_samples(
                batches,
                state.network,
                self.task,
                state.optimizer,
                self.guard,
                step=step,
                precision=state.precision,
            )
        return blame([key_of(int(i)) for i in index], step=step, world_size=self.context.world_size)
