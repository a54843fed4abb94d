"""The training loop: the same in one process, under torchrun and under Ray Train.

Everything is counted in optimiser steps. The loop writes metrics, checkpoints and the result into the run directory
and knows nothing of who started it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from safetensors import SafetensorError

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend, Batch, Loader, train_batches
from resnet_pipeline.device import chosen_precision, prepare_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.models.weights import save_weights, weights_sha256
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.training.attempt import Owner, fetch, note
from resnet_pipeline.training.batch_norm import (
    averaged_statistics,
    gather_statistics,
    load_statistics,
    recompute_statistics,
)
from resnet_pipeline.training.blame import bad_samples, blame
from resnet_pipeline.training.checkpoint import newest_checkpoint, read_checkpoint
from resnet_pipeline.training.checkpoint_writer import CheckpointWriter
from resnet_pipeline.training.classifier import build_classifier
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.distributed import Notice, Notices, collective_timeout, distribute, from_rank_zero
from resnet_pipeline.training.ema import WeightAverage
from resnet_pipeline.training.metrics_log import MetricsLog
from resnet_pipeline.training.mirror import Mirror
from resnet_pipeline.training.optim import build_optimizer, set_lr
from resnet_pipeline.training.phases import PhasedBatches
from resnet_pipeline.training.profile import LEAST_STEPS, Profile
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.schedule import Schedule
from resnet_pipeline.training.state import capture, restore, result_of
from resnet_pipeline.training.step import FiniteGuard, RunningSums, compile_network, train_step
from resnet_pipeline.training.system import StepTimes, SystemMetrics
from resnet_pipeline.training.throughput import Throughput
from resnet_pipeline.training.validation import centre_errors
from resnet_pipeline.training.watchdog import HangError, Watchdog

_SECONDS_BETWEEN_LOOKS = 2.0  # at the launcher's warnings: asking it may take some milliseconds


class NonFiniteError(UserError):
    """The loss or a gradient was NaN or infinite; the weights are those of before that step."""


def train(
    run: RunDirectory,
    dataset: Dataset,
    context: Context,
    *,
    backend: Backend = "auto",
    mirror: Storage | None = None,
) -> bool:
    """Train the run to its end, from its newest checkpoint where it has one, here or in the ``mirror``.

    Returns True when the run is finished and its result written, False when it was asked to stop and has saved its
    state. Raises ConfigError where the workers can't share the batch, CheckpointError, NonFiniteError, HangError where
    another process does not answer, and what the loader raises.
    """
    if from_rank_zero(run.result_file.exists(), context.world_size):
        return True
    limit = collective_timeout().total_seconds()
    trainer = None
    try:
        trainer = Trainer(run, dataset, context, backend=backend, mirror=mirror)
        return trainer.run_to_end()
    except RuntimeError as error:
        # gloo says either, depending on which end of a connection noticed
        alone = context.world_size == 1
        if alone or not any(words in str(error).lower() for words in ("timed out", "timeout")):
            raise
        where = f"at step {trainer.step}" if trainer else "at the start"
        message = f"a worker did not answer rank {context.rank} for {limit:.0f} s {where}; this attempt ends"
        note(run, trainer.step if trainer else 0, message)
        raise HangError(f"{message}, and the run goes on from its newest checkpoint") from error
    finally:
        if trainer:
            trainer.close()


class Trainer:
    """The state of a run in one of its processes."""

    def __init__(
        self,
        run: RunDirectory,
        dataset: Dataset,
        context: Context,
        *,
        backend: Backend = "auto",
        mirror: Storage | None = None,
    ) -> None:
        self.run, self.dataset, self.context, self.backend = run, dataset, context, backend
        self.config = config = run.config()
        self.step = 0
        config.check_workers(context.world_size)
        # rank 0's choice: the others may run on other hardware
        self.precision = from_rank_zero(chosen_precision(config.precision, context.device), context.world_size)
        prepare_device(context.device, self.precision)
        self.classifier = build_classifier(config.model, dataset, seed=config.seed, precision=self.precision)
        self.classifier = self.classifier.to(context.device).to(memory_format=torch.channels_last)
        self.compiled = config.compile and compile_network(self.classifier, context.device)
        self.optimizer = build_optimizer(self.classifier, config.optim)
        self.average = WeightAverage(self.classifier, config.optim.ema)
        self.schedule = Schedule(config.schedule, lr=config.optim.lr, steps=config.steps)
        self.guard = FiniteGuard(self.optimizer, context.device)
        self.sums = RunningSums(context.device)
        self.seconds_before = 0.0
        self.measured_from = 0  # the step of the last log point, or of the resumption
        self.last_train: dict[str, float] = {}
        self.best: dict[str, float] = {}  # step and top1 of the lowest validation error so far
        self.errors: dict[str, float] = {}
        self.validated = -1  # the step that ``errors`` are of
        self.identity = run.identity()
        lead = context.rank == 0
        self.owner = Owner(run) if lead else None
        if lead and mirror:
            fetch(run, mirror)
        self.log = self._resume()
        self.model: torch.nn.Module = self.classifier
        if context.world_size > 1:
            self.model = distribute(self.classifier, context.device)
        self.mirror = Mirror(run, mirror, say=self._say) if lead and mirror else None
        sent = self.mirror.send_soon if self.mirror else lambda: None
        self.writer = CheckpointWriter(run.checkpoints, written=sent, say=self._say) if lead else None
        self.watchdog = Watchdog(2 * collective_timeout().total_seconds(), lambda: f"after step {self.step}")
        self.notices = Notices(context.world_size)
        self.looked = time.monotonic()
        self.throughput = Throughput()
        self.step_times = StepTimes()
        self.system = SystemMetrics(context.device)
        self.profile: Profile | None = None
        left = config.steps - self.step
        if from_rank_zero(run.profile_request.exists(), context.world_size) and left >= LEAST_STEPS:
            self.profile = Profile(run.profile, rank=context.rank, device=context.device, steps=left)

    def run_to_end(self) -> bool:
        """Run the remaining steps and write the result; False when asked to stop before the end."""
        config = self.config
        with self._batches(self.step, config.steps - self.step) as batches:
            self.model.train()
            while self.step < config.steps:
                self._one_step(iter(batches))
                notice = self.notices.exchange(self._notice())
                if self._at(config.log_every):
                    self._log()
                improved = self._at(config.eval_every) and self.step < config.steps and self._validate()
                warned = notice >= Notice.LOOK and self.context.should_save()
                stopping = notice is Notice.STOP and self.step < config.steps
                if self._at(config.checkpoint_every) or improved or warned or stopping:
                    self._save()
                if stopping:
                    self._wait_for_writer()
                    self.notices.close()
                    return False
        self.notices.close()
        self._finish()
        return True

    def close(self) -> None:
        """Wait for the checkpoint writer and the mirror, and close the metrics file."""
        self.watchdog.close()
        if self.writer:
            self.writer.close()
        if self.mirror:
            self.mirror.send_soon()
            self.mirror.close()
        if self.log:
            self.log.close()

    def _say(self, line: str) -> None:
        print(line, flush=True)
        self._append("note", text=line)

    def _notice(self) -> Notice:
        if self.context.should_stop():
            return Notice.STOP
        if self.context.rank == 0 and time.monotonic() - self.looked > _SECONDS_BETWEEN_LOOKS:
            self.looked = time.monotonic()
            return Notice.LOOK
        return Notice.NONE

    def _wait_for_writer(self) -> None:
        if self.writer:
            self.writer.wait()

    def _batches(self, start_step: int, steps: int) -> PhasedBatches:
        return PhasedBatches(self.config, start_step, steps, self._loader)

    def _loader(self, start_step: int, steps: int, augment: AugmentConfig) -> Loader[Batch]:
        config, context = self.config, self.context
        return train_batches(
            self.dataset,
            augment=augment,
            seed=config.seed,
            batch=config.batch,
            micro_batch=config.micro_batch,
            rank=context.rank,
            world=context.world_size,
            start_step=start_step,
            steps=steps,
            device=context.device,
            backend=self.backend,
            block_shards=config.block_shards if config.order == "block" else None,
        )

    def _at(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _one_step(self, batches: Iterator[Batch]) -> None:
        self.watchdog.alive()
        start = time.perf_counter()
        local = self.config.micro_batches // self.context.world_size
        with self.throughput.waiting():
            micro_batches = [next(batches) for _ in range(local)]
        set_lr(self.optimizer, self.schedule.lr(self.step))
        self.gradient_norm = train_step(
            self.model,
            self.optimizer,
            self.guard,
            self.sums,
            micro_batches,
            step=self.step,
            precision=self.precision,
            label_smoothing=self.config.optim.label_smoothing,
            keep_gradients=self.compiled,
        )
        self.average.update(self.step)
        self.step += 1
        self.step_times.add(time.perf_counter() - start)
        if self.profile:
            self._profile(self.profile)

    def _profile(self, profile: Profile) -> None:
        values = profile.after_step(self.model, self.throughput.waited)
        if values:
            self._append("profile", **values)
            if self.context.rank == 0:
                self.run.profile_request.unlink(missing_ok=True)
            self.profile = None

    def _log(self) -> None:
        self._check_finite()
        self._check_owner()
        loss, error, _ = self.sums.read()
        images = (self.step - self.measured_from) * self.config.batch
        self.measured_from = self.step
        self.schedule.observe_training(error)
        self.last_train = {"loss": loss, "error": error}
        self._append(
            "train",
            epoch=self.step * self.config.batch / len(self.dataset.splits["train"]),
            lr=self.optimizer.param_groups[0]["lr"],
            gradient_norm=float(self.gradient_norm),
            **self.last_train,
            shard_wait_seconds=round(self.dataset.shard_wait, 3),
            **self.throughput.read(images),
            **self.step_times.read(),
        )
        if self.log and self.system.due():
            self._append("system", **self.system.read())

    def _check_finite(self) -> None:
        bad = self.guard.bad_step()
        if bad is not None:
            raise NonFiniteError(self._blame(bad))

    def _blame(self, step: int) -> str:
        with self._batches(step, 1) as batches:
            index = bad_samples(
                batches,
                self.classifier,
                self.optimizer,
                self.guard,
                step=step,
                precision=self.precision,
                label_smoothing=self.config.optim.label_smoothing,
            )
        keys = self.dataset.splits["train"].keys
        return blame([keys[i] for i in index], step=step, world_size=self.context.world_size)

    def _check_owner(self) -> None:
        if self.owner:
            self.owner.check()

    def _validate(self) -> bool:
        """Test in mid-training and note it; return whether the error is the lowest so far."""
        with self.throughput.paused(), averaged_statistics(self.classifier, self.context.world_size):
            self.errors = errors = centre_errors(
                self.classifier,
                self.dataset,
                self.config,
                self.context,
                backend=self.backend,
                alive=self.watchdog.alive,
            )
        self.schedule.observe_validation(errors["top1"])
        improved = not self.best or errors["top1"] < self.best["top1"]
        if improved:
            self.best = {"step": self.step, "top1": errors["top1"]}
        self.validated = self.step
        self._append("validation", **errors)
        # at validations only: under Ray a report is a barrier, and frequent ones block (its controller polls)
        self.context.report({"step": float(self.step), **errors})
        return improved

    def _append(self, kind: str, **values: float | str) -> None:
        if self.log:
            self.log.append(kind, self.step, **values)

    def _save(self) -> None:
        self._check_finite()
        self._check_owner()
        start = time.perf_counter()
        checkpoint = capture(self)
        if self.writer:
            top1 = self.errors["top1"] if self.validated == self.step else None
            held = self.writer.write(checkpoint, top1=top1)
            self._append("checkpoint", pause=round(time.perf_counter() - start, 5), bytes=held)

    def _resume(self) -> MetricsLog | None:
        """Take up the newest good checkpoint, if there is one; return rank 0's metrics file, which then says so."""
        newest = newest_checkpoint(self.run.checkpoints) if self.context.rank == 0 else None
        path, problems = from_rank_zero(newest, self.context.world_size)
        if path is not None:
            restore(self, read_checkpoint(path, run=self.identity))
        if self.context.rank:
            return None
        log = MetricsLog(self.run.metrics_file)
        if self.step or self.run.metrics_file.stat().st_size:
            log.append("resume", self.step, workers=self.context.world_size)
        for problem in problems:
            note(self.run, self.step, problem)
        return log

    def _finish(self) -> None:
        config, context = self.config, self.context
        self.average.copy_to_model()
        if config.bn_images:
            steps = max(1, min(config.bn_images, len(self.dataset.splits["train"])) // config.batch)
            with (
                self.throughput.paused(),
                self._batches(config.steps, steps) as batches,
            ):
                recompute_statistics(self.classifier, batches, context.device)
        else:
            load_statistics(self.classifier, gather_statistics(self.classifier, context.world_size).mean(0))
        self._validate()
        self._check_owner()
        if context.rank == 0:
            self._write_result()

    def _write_result(self) -> None:
        """Write weights and result of a finished run, by rank 0; UserError if there is no room for them."""
        run, seconds = self.run, self.seconds_before + self.throughput.seconds
        digest = weights_sha256(self.classifier)
        metadata = {"recipe": self.config.recipe, "run": run.name, "weights_sha256": digest}
        try:
            save_weights(self.classifier, run.weights_file, metadata)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{run.weights_file} can't be written: {error}; make room and start the same run again"
            ) from error
        self._append("done", seconds=seconds)
        result_of(self, digest).write(run.result_file)
