"""The training loop: the same in one process, under torchrun and under Ray Train.

Everything is counted in optimiser steps. The loop writes metrics, checkpoints and the result into the run directory
and knows nothing of who started it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from resnet_pipeline.config import AugmentConfig, config_hash
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend, Batch, Loader, train_batches, view_batches
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.metrics import TopErrors
from resnet_pipeline.models.weights import save_weights, weights_sha256
from resnet_pipeline.training.bn_stats import (
    averaged_statistics,
    gather_statistics,
    load_statistics,
    recompute_statistics,
)
from resnet_pipeline.training.checkpoint import Checkpoint, CheckpointWriter, newest_checkpoint, read_checkpoint
from resnet_pipeline.training.classifier import build_classifier
from resnet_pipeline.training.context import Context, all_reduce_sum, from_rank_zero
from resnet_pipeline.training.ema import WeightAverage
from resnet_pipeline.training.optim import build_optimizer, set_lr
from resnet_pipeline.training.phases import PhasedBatches
from resnet_pipeline.training.profile import LEAST_STEPS, Profile
from resnet_pipeline.training.run_directory import MetricsLog, RunDirectory
from resnet_pipeline.training.schedule import Schedule, ScheduleState
from resnet_pipeline.training.setup import compile_network, prepare_device
from resnet_pipeline.training.step import FiniteGuard, RunningSums, train_step
from resnet_pipeline.training.throughput import Throughput
from resnet_pipeline.workspace import write_json


class NonFiniteError(UserError):
    """The loss or a gradient was NaN or infinite; the weights are those of before that step."""


def train(run: RunDirectory, dataset: Dataset, context: Context, *, backend: Backend = "auto") -> bool:
    """Train the run to its end, from its newest checkpoint where it has one.

    Returns True when the run is finished and its result written, False when it was asked to stop and has saved its
    state. Raises ConfigError where the workers can't share the batch, NonFiniteError, and what the loader raises.
    """
    if from_rank_zero(run.result_file.exists(), context.world_size):
        return True
    trainer = Trainer(run, dataset, context, backend=backend)
    try:
        return trainer.run_to_end()
    finally:
        trainer.close()


class Trainer:
    """The state of a run in one of its processes."""

    def __init__(self, run: RunDirectory, dataset: Dataset, context: Context, *, backend: Backend = "auto") -> None:
        self.run, self.dataset, self.context, self.backend = run, dataset, context, backend
        self.config = config = run.config()
        config.check_workers(context.world_size)
        prepare_device(context.device, config.precision)
        self.classifier = build_classifier(config.model, dataset, seed=config.seed, precision=config.precision)
        self.classifier = self.classifier.to(context.device).to(memory_format=torch.channels_last)
        self.compiled = config.compile and compile_network(self.classifier, context.device)
        self.optimizer = build_optimizer(self.classifier, config.optim)
        self.average = WeightAverage(self.classifier, config.optim.ema)
        self.schedule = Schedule(config.schedule, lr=config.optim.lr, steps=config.steps)
        self.guard = FiniteGuard(self.optimizer, context.device)
        self.sums = RunningSums(context.device)
        self.step = 0
        self.seconds_before = 0.0
        self.last_train: dict[str, float] = {}
        self.recent: list[torch.Tensor] = []  # sample numbers since the last log point, to name a bad batch
        lead = context.rank == 0
        self.log = MetricsLog(run.metrics_file) if lead else None
        self.writer = CheckpointWriter(run.checkpoints) if lead else None
        self._resume()
        self.model: torch.nn.Module = self.classifier
        if context.world_size > 1:
            # batch-norm statistics stay each rank's own: they are averaged where they are used
            self.model = DistributedDataParallel(self.classifier, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.throughput = Throughput()
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
                if self._at(config.log_every):
                    self._log()
                if self._at(config.eval_every) and self.step < config.steps:
                    self._validate()
                stopping = self._at(config.log_every) and self._asked_to_stop()
                if self._at(config.checkpoint_every) or stopping:
                    self._save()
                if stopping and self.step < config.steps:
                    if self.writer:
                        self.writer.wait()
                    return False
        self._finish()
        return True

    def close(self) -> None:
        """Wait for the checkpoint writer and close the metrics file."""
        try:
            if self.writer:
                self.writer.close()
        finally:
            if self.log:
                self.log.close()

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
            precision=self.config.precision,
            label_smoothing=self.config.optim.label_smoothing,
            keep_gradients=self.compiled,
        )
        self.average.update(self.step)
        self.recent.append(torch.cat([b.index for b in micro_batches]))
        self.step += 1
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
        loss, error, images = self.sums.read()
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
        )

    def _check_finite(self) -> None:
        bad = self.guard.bad_step()
        if bad is not None:
            first = self.step - len(self.recent)
            keys = self.dataset.splits["train"].keys
            names = [keys[i] for i in self.recent[bad - first].tolist()]
            raise NonFiniteError(
                f"loss or gradient not finite at step {bad} on rank {self.context.rank}; the weights are those before "
                f"it, try a lower optim.lr; samples: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
            )
        self.recent.clear()

    def _validate(self) -> dict[str, float]:
        split, views = self.dataset.eval_split, self.config.views
        counts = TopErrors()
        with self.throughput.paused(), averaged_statistics(self.classifier, self.context.world_size):
            self.classifier.eval()
            with (
                torch.inference_mode(),
                view_batches(
                    self.dataset,
                    split=split,
                    views="center",
                    resize=views.resize,
                    crop=views.crop,
                    batch_size=2 * self.config.micro_batch,
                    rank=self.context.rank,
                    world=self.context.world_size,
                    device=self.context.device,
                    backend=self.backend,
                ) as batches,
            ):
                for batch in batches:
                    logits = self.classifier(batch.images[:, 0].to(self.context.device))
                    counts.add(logits, batch.labels.to(logits.device))
            self.classifier.train()
            errors = TopErrors(all_reduce_sum(counts.sums.to(self.context.device))).errors()
        self.schedule.observe_validation(errors["top1"])
        self._append("validation", **errors)
        # at validations only: under Ray a report is a barrier, and frequent ones block (its controller polls)
        self.context.report({"step": float(self.step), **errors})
        return errors

    def _append(self, kind: str, **values: float) -> None:
        if self.log:
            self.log.append(kind, self.step, **values)

    def _asked_to_stop(self) -> bool:
        flag = torch.tensor([float(self.context.should_stop())], device=self.context.device)
        return bool(all_reduce_sum(flag).item())

    def _save(self) -> None:
        self._check_finite()
        statistics = gather_statistics(self.classifier, self.context.world_size)
        if self.writer:
            self.writer.write(
                Checkpoint(
                    step=self.step,
                    config_hash=config_hash(self.config),
                    model=self.classifier.state_dict(),
                    optimizer=self.optimizer.state_dict(),
                    statistics=statistics,
                    extra={
                        "schedule": self.schedule.state.to_dict(),
                        "seconds": self.seconds_before + self.throughput.seconds,
                        "last_train": self.last_train,
                    },
                    ema=self.average.weights,
                )
            )

    def _resume(self) -> None:
        newest = newest_checkpoint(self.run.checkpoints) if self.context.rank == 0 else None
        path, problems = from_rank_zero(newest, self.context.world_size)
        if path is not None:
            checkpoint = read_checkpoint(path, config_hash=config_hash(self.config))
            self.classifier.load_state_dict(checkpoint.model)
            self.optimizer.load_state_dict(checkpoint.optimizer)
            self.average.load(checkpoint.ema)
            self.schedule.state = ScheduleState(**checkpoint.extra["schedule"])
            statistics = checkpoint.statistics.to(self.context.device)
            same = len(statistics) == self.context.world_size
            load_statistics(self.classifier, statistics[self.context.rank] if same else statistics.mean(0))
            self.step = checkpoint.step
            self.seconds_before = checkpoint.extra["seconds"]
            self.last_train = checkpoint.extra["last_train"]
        if self.log and (self.step or self.run.metrics_file.stat().st_size):
            self.log.append("resume", self.step, problems=len(problems))
        if self.context.rank == 0:
            for problem in problems:
                print(problem, flush=True)

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
        errors = self._validate()
        if context.rank == 0:
            self._write_result(errors)

    def _write_result(self, errors: dict[str, float]) -> None:
        seconds = self.seconds_before + self.throughput.seconds
        images = self.config.steps * self.config.batch
        digest = weights_sha256(self.classifier)
        save_weights(
            self.classifier,
            self.run.weights_file,
            {"recipe": self.config.recipe, "run": self.run.name, "weights_sha256": digest},
        )
        result: dict[str, Any] = {
            "steps": self.config.steps,
            "images": images,
            "seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 2) if seconds else 0.0,
            "workers": self.context.world_size,
            "device": str(self.context.device),
            "train_loss": self.last_train.get("loss"),
            "train_error": self.last_train.get("error"),
            "validation": errors,
            "weights_sha256": digest,
        }
        if self.log:
            self.log.append("done", self.step, seconds=seconds)
        write_json(self.run.result_file, result)
