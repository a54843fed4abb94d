from __future__ import annotations

import dataclasses
import itertools
import logging
import random
import resource
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import train_batches
from resnet_pipeline.errors import UserError
from resnet_pipeline.logs import LogContext, at_step, current_context, log_context
from resnet_pipeline.models.weights import weights_sha256
from resnet_pipeline.storage.cache import CacheFolder
from resnet_pipeline.training import attempt
from resnet_pipeline.training.attempt import Owner, TakenOverError, noting
from resnet_pipeline.training.batch_norm import recompute_statistics
from resnet_pipeline.training.checkpoint import CheckpointError, newest_checkpoint
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import NonFiniteError, Trainer, train
from resnet_pipeline.training.metrics_log import (
    Line,
    NoteEntry,
    ResumeEntry,
    TrainEntry,
    ValidationEntry,
    entries_of,
    read_metrics,
)
from resnet_pipeline.training.tasks import ClassificationTask, build_classifier
from tests.checkpoints import altered
from tests.launching import launch
from tests.metrics import entries, losses, steps_of, training

# a task with a sample whose colour offset is not a number: a batch with it has no finite loss
POISONED = """
import sys
from pathlib import Path
import torch
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.training.context import torchrun_context
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.tasks import ClassificationTask, build_classifier
from resnet_pipeline.training.tasks import ClassificationTask

class Poisoned(ClassificationTask):
    def forward(self, model, batch):
        batch.color[batch.index == int(sys.argv[3])] = float("nan")
        return super().forward(model, batch)

torch.set_num_threads(1)
run, dataset = RunDirectory.open(Path(sys.argv[1])), Dataset.open(Path(sys.argv[2]))
with torchrun_context() as context:
    train(run, dataset, context, task=Poisoned(run.config(), dataset, context))
"""


@pytest.mark.slow
def test_a_run_writes_metrics_checkpoints_weights_and_result(make_run, digits):
    run = make_run()
    assert train(run, digits, LocalContext())
    result = run.result()
    assert steps_of(run, TrainEntry) == [2, 4, 6, 8, 10, 12]
    assert steps_of(run, ValidationEntry) == [6, 12]
    assert result.images == 12 * 64 and result.validation["images"] == len(digits.splits["val"])
    assert losses(run)[-1] < losses(run)[0]
    path, problems = newest_checkpoint(run.checkpoints)
    assert path.name == "step-00000012.pt" and problems == []
    steps = [int(p.stem[5:]) for p in run.checkpoints.glob("*.pt")]
    assert sorted(steps)[-2:] == [8, 12] and len(steps) <= 3  # the last two and the best
    before = run.result_file.stat().st_mtime_ns
    assert train(run, digits, LocalContext())  # finished: nothing is done again
    assert run.result_file.stat().st_mtime_ns == before


def stopping_after(*steps: int) -> LocalContext:
    """Return a context that asks for a stop after the first of these steps, then, if used again, the next."""
    counter, stops = itertools.count(1), set(steps)
    return LocalContext(stop=lambda: next(counter) in stops)


@pytest.mark.slow
def test_a_run_stopped_at_any_step_ends_bit_identical(make_run, digits):
    # a constant warm-up that ends by the training error: the error since the last log point is state, too
    warm = [
        "schedule.warmup=0",
        "schedule.warmup_lr=0.01",
        "schedule.warmup_until=89.5",
        "schedule.kind=plateau",
        "schedule.patience=1",
    ]
    small = ["log_every=3", "eval_every=4", "checkpoint_every=5", "steps=14", *warm]
    whole = make_run(*small, folder="whole")
    train(whole, digits, LocalContext())
    rates = [entry.lr for _, entry in entries(whole, TrainEntry)]
    assert rates[0] == 0.01 and len(set(rates)) > 1, rates  # the warm-up ended
    run = make_run(*small, folder="stopped")
    context = stopping_after(1, 2, 5, 11)  # steps that are made, so: after steps 1, 2, 5 and 11 of the run
    for step in (1, 2, 5, 11):
        assert not train(run, digits, context)
        assert newest_checkpoint(run.checkpoints)[0].stem == f"step-{step:08d}"
        assert run.result() is None
    assert train(run, digits, LocalContext())
    assert run.result().weights_sha256 == whole.result().weights_sha256
    assert run.result().best == whole.result().best
    steps = [[(s, e.figures, e.lr, e.epoch, e.gradient_norm) for s, e in entries(r, TrainEntry)] for r in (run, whole)]
    assert steps[0] == steps[1]
    assert entries(run, ValidationEntry) == entries(whole, ValidationEntry)


@pytest.mark.slow
def test_nothing_in_training_draws_from_a_global_generator(make_run, digits):
    # so there is no generator state to save: order and augmentation are functions of the step
    trainer = Trainer(make_run("steps=4", "eval_every=2"), digits, LocalContext())
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    trainer.run_to_end()
    trainer.close()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


@pytest.mark.slow
def test_a_run_that_another_process_has_taken_over_writes_no_more(make_run, digits):
    run = make_run()
    trainer = Trainer(run, digits, LocalContext())  # on a node that was cut off, say
    assert not train(run, digits, stopping_after(5))  # a later attempt
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    for late in (trainer.run_to_end, trainer.validate, lambda: trainer.attempt.append(ResumeEntry(workers=1))):
        with pytest.raises(TakenOverError, match="another process"):
            late()
    trainer.close()
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused(make_run, digits):
    run = make_run(folder="run")
    train(run, digits, stopping_after(3))
    path, _ = newest_checkpoint(run.checkpoints)
    weights = torch.load(path, weights_only=True)["model"] | {"network.fc.weight": torch.zeros(7, 64)}
    altered(path, model=weights)
    with pytest.raises(CheckpointError, match=r"step 3 .*another network.*network\.fc\.weight"):
        train(run, digits, LocalContext())
    other = make_run("optim.lr=0.05", folder="other")
    shutil.copytree(run.checkpoints, other.checkpoints, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match=f"belongs to the run {run.name}.*not to {other.name}"):
        train(other, digits, LocalContext())


@pytest.mark.slow
def test_a_full_disk_ends_nothing_and_costs_no_metric(make_run, digits):
    seen = []

    def log() -> bool:
        seen.append(dataclasses.replace(current_context()))
        return False

    # files end at 100 kB, so no checkpoint of 0.6 MB can be written; weights come when there is room again
    run = make_run("checkpoint_every=8", "eval_every=12")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        # the final weights have no room either
        with pytest.raises(UserError, match=r"weights\.safetensors can't be written.*make room"):
            train(run, digits, LocalContext(stop=log))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(losses(run)) == 6 and run.result() is None
    notes = {note.text: step for step, note in entries(run, NoteEntry)}
    (text,) = (text for text in notes if "step 8 not written: File too large" in text)
    assert notes[text] >= 8, "the thread that wrote it is at the training's step"
    assert seen == [LogContext(run=run.name, rank=0, step=step) for step in range(1, 13)], "as lines of the log say"
    assert train(run, digits, LocalContext())


def test_what_a_process_warns_of_is_noted_in_the_metrics_of_its_run(make_run):
    run, other = make_run("seed=1"), make_run("seed=2")
    with noting(run), noting(other), log_context(run=run.name, rank=1):
        at_step(3)
        logging.getLogger("resnet_pipeline.storage.x").warning("%s is full", "a disk")
        logging.getLogger("resnet_pipeline.storage.x").info("nothing to note")
    assert entries(run, NoteEntry) == [(3, NoteEntry(text="a disk is full"))]
    assert read_metrics(other.metrics_file) == []


def test_what_a_late_attempt_warns_of_is_not_noted(make_run, digits):
    run = make_run()
    Trainer(run, digits, LocalContext()).close()
    with noting(run), log_context(run=run.name, rank=0):
        logging.getLogger("resnet_pipeline.x").warning("in time")
        Owner.claim(run)  # a later attempt
        logging.getLogger("resnet_pipeline.x").warning("late")
    assert [note.text for _, note in entries(run, NoteEntry)] == ["in time"]


@pytest.mark.parametrize("patience", [0.05, 60.0])
def test_a_claim_waits_for_a_line_that_is_being_written_but_not_for_ever(make_run, monkeypatch, patience):
    monkeypatch.setattr(attempt, "_SECONDS_FOR_A_LOCK", patience)
    run = make_run()
    claimed = threading.Thread(target=Owner.claim, args=(run,), daemon=True)
    with Owner(run, Owner.claim(run)).staying():
        claimed.start()
        claimed.join(60 if patience < 1 else 0.1)
        assert claimed.is_alive() == (patience > 1)
    claimed.join()


@pytest.mark.slow
def test_four_workers_stopped_by_sigterm_end_bit_identical(make_run, digits):
    # of three or more the order of additions depends on where a gradient lies in its bucket
    small = ["batch=64", "micro_batch=16", "steps=40", "checkpoint_every=50", "eval_every=50", "bn_images=0"]
    whole, run = make_run(*small, folder="whole"), make_run(*small, folder="stopped")
    for process in launch(whole, digits, 4):
        assert process.wait(120) == 0
    processes = launch(run, digits, 4)
    deadline = time.monotonic() + 100
    while not losses(run) and time.monotonic() < deadline:
        time.sleep(0.01)
    processes[3].send_signal(signal.SIGTERM)  # one rank is warned; all save at the same step
    for process in processes:
        assert process.wait(120) == 0
    assert run.result() is None and newest_checkpoint(run.checkpoints)[0] is not None
    for process in launch(run, digits, 4):
        assert process.wait(120) == 0
    assert run.result().weights_sha256 == whole.result().weights_sha256


@pytest.mark.slow
def test_a_worker_that_hangs_ends_the_attempt_with_a_message(make_run, digits, monkeypatch):
    monkeypatch.setenv("RESNET_PIPELINE_TIMEOUT", "4")
    run = make_run("steps=4000", "checkpoint_every=4", "eval_every=5000")
    first, second = launch(run, digits, 2)
    try:
        deadline = time.monotonic() + 100
        while newest_checkpoint(run.checkpoints)[0] is None and time.monotonic() < deadline:
            time.sleep(0.01)
        second.send_signal(signal.SIGSTOP)
        assert first.wait(60) == 1
    finally:
        for process in (first, second):
            process.kill()
            process.wait(20)
    notes = [note.text for _, note in entries(run, NoteEntry)]
    assert any("did not answer rank 0 for 4 s at step" in note for note in notes)
    assert newest_checkpoint(run.checkpoints)[1] == []


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_rank_and_the_samples(make_run, digits):
    run = make_run("steps=8", "batch=64", "micro_batch=16")
    keys = digits.splits["train"].keys
    step, bad = 5, 3  # micro-batch 3 of 4 is the second one of rank 1
    options = {"augment": run.config().augment, "seed": 0, "batch": 64, "micro_batch": 16}
    batches = list(train_batches(digits, **options, start_step=step, steps=1, backend="torch"))
    names = [keys[i] for i in batches[bad].index.tolist()]
    processes = launch(run, digits, 2, script=POISONED, arguments=[str(batches[bad].index[0].item())])
    errors = [process.errors(120) for process in processes]
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode != 0
        message = next(line for line in error.splitlines() if "NonFiniteError:" in line)
        assert f"step {step} on rank 1, samples {', '.join(names[:8])} …;" in message
        assert "rank 0" not in message
    path, problems = newest_checkpoint(run.checkpoints)
    assert path.name == "step-00000004.pt" and problems == []


FROZEN = ["optim.frozen_stages=1", "optim.layer_decay=0.5"]


@pytest.mark.slow
@pytest.mark.parametrize("fields", [[], FROZEN], ids=["all", "frozen"])
def test_a_killed_run_ends_bit_identical(make_run, digits, fields):
    whole, run = (make_run("steps=60", *fields, folder=folder) for folder in ("whole", "killed"))
    for process in launch(whole, digits, 1):
        assert process.wait(120) == 0
    (process,) = launch(run, digits, 1)
    deadline = time.monotonic() + 120
    while newest_checkpoint(run.checkpoints)[0] is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait(20)
    assert run.result() is None
    for process in launch(run, digits, 1):
        assert process.wait(120) == 0
    assert run.result().weights_sha256 == whole.result().weights_sha256


@pytest.mark.slow
@pytest.mark.parametrize("fields", [[], FROZEN], ids=["all", "frozen"])
def test_two_workers_compute_what_one_does(make_run, digits, fields):
    runs = {world: make_run("steps=20", *fields, folder=f"world{world}") for world in (1, 2)}
    for world, run in runs.items():
        for process in launch(run, digits, world):
            assert process.wait(120) == 0
    # float32: the same arithmetic but for the order of additions, which 20 steps amplify
    np.testing.assert_allclose(losses(runs[1]), losses(runs[2]), rtol=2e-3)
    assert losses(runs[1])[0] == pytest.approx(losses(runs[2])[0], rel=1e-5)


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(make_run, digits):
    whole, run = make_run(folder="whole"), make_run(folder="damaged")
    train(whole, digits, LocalContext())
    train(run, digits, stopping_after(9))
    newest, _ = newest_checkpoint(run.checkpoints)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    older, problems = newest_checkpoint(run.checkpoints)
    assert older != newest and newest.name in problems[0]
    train(run, digits, LocalContext())
    assert run.result().weights_sha256 == whole.result().weights_sha256


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_before_the_update(make_run, digits):
    run = make_run("optim.lr=1e9")
    with pytest.raises(NonFiniteError, match=r"step \d+ on rank 0.*train/\d/\d+\.JPEG"):
        train(run, digits, LocalContext())
    assert run.result() is None


def test_metrics_of_a_resumed_run_are_one_history(tmp_path):
    written = [(2, training(loss=0)), (4, training(loss=1)), (6, training(loss=2))]
    written += [(4, ResumeEntry(workers=1)), (6, training(loss=4)), (8, training(loss=5))]
    text = b"".join(Line(step, 0.0, entry).to_bytes() for step, entry in written)
    (tmp_path / "metrics.jsonl").write_bytes(text + b'{"kind": "tra')
    history = entries_of(read_metrics(tmp_path / "metrics.jsonl"), TrainEntry)
    assert [(step, entry.figures["loss"]) for step, entry in history] == [(2, 0), (4, 1), (6, 4), (8, 5)]


@pytest.mark.slow
def test_final_batch_norm_statistics_are_true_averages(make_run, digits):
    config = make_run().config()
    task = ClassificationTask(config, digits, LocalContext())
    model = task.network()
    options = {"augment": config.augment, "seed": 1, "batch": 64, "micro_batch": 32, "steps": 3}
    recompute_statistics(model, train_batches(digits, **options), task.forward, torch.device("cpu"))
    outputs = []
    handle = model.network.conv1.register_forward_hook(lambda m, i, o: outputs.append(o))
    model.train()
    with torch.no_grad():
        for batch in train_batches(digits, **options):
            model(batch.images, batch.color)
    handle.remove()
    means = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    variances = torch.stack([o.var((0, 2, 3), unbiased=True) for o in outputs]).mean(0)
    fresh = task.network()
    recompute_statistics(fresh, train_batches(digits, **options), task.forward, torch.device("cpu"))
    torch.testing.assert_close(fresh.network.bn1.running_mean, means, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fresh.network.bn1.running_var, variances, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_gradient_of_a_step_is_the_mean_over_its_micro_batches(make_run, digits):
    run = make_run("batch=96", "micro_batch=32", "steps=1")
    trainer = Trainer(run, digits, LocalContext())
    model = build_classifier(run.config().model, digits, seed=0)
    config = run.config()
    total = None
    for batch in train_batches(digits, augment=config.augment, seed=0, batch=96, micro_batch=32, steps=1):
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(batch.images, batch.color), batch.labels).backward()
        gradient = model.network.fc.weight.grad / 3
        total = gradient if total is None else total + gradient
    trainer.run_to_end()
    trainer.close()
    torch.testing.assert_close(trainer.state.network.network.fc.weight.grad, total, rtol=1e-4, atol=1e-6)
    assert weights_sha256(trainer.state.network) == run.result().weights_sha256


@pytest.mark.slow
def test_training_from_a_bucket_is_training_from_the_folder(make_run, sharded_digits, digits_in_s3, tmp_path):
    """A cold cache that holds a third of the shards: two blocks of the order."""
    changes = ["order=block", "block_shards=2", "steps=24", "eval_every=24"]  # more than an epoch
    largest = max(shard.bytes for shard in sharded_digits.manifest.splits["train"].shards)
    cache = CacheFolder(tmp_path / "cache", limit=5 * largest)
    for folder, dataset in (("folder", sharded_digits), ("bucket", Dataset.open(digits_in_s3, cache))):
        assert train(make_run(*changes, folder=folder), dataset, LocalContext())
    local, remote = (make_run(*changes, folder=folder) for folder in ("folder", "bucket"))
    assert remote.result().weights_sha256 == local.result().weights_sha256
    assert remote.result().validation == local.result().validation
    waits = [[entry.shard_wait_seconds for _, entry in entries(run, TrainEntry)] for run in (local, remote)]
    assert set(waits[0]) == {0.0} and 0 < waits[1][0] <= waits[1][-1]


def test_a_share_of_the_training_images_is_the_same_part_of_each_class(digits, make_run):
    part = digits.trained_on(0.25).splits["train"]
    whole = digits.splits["train"]
    counts = np.bincount(whole.labels)
    assert np.bincount(part.labels).tolist() == [int(0.25 * count) for count in counts]
    # an image is the same under its new number, with its checksum
    rows = {key: row for row, key in enumerate(whole.keys)}
    assert len(set(part.keys)) == len(part)
    for sample in (0, len(part) // 2, len(part) - 1):
        before = rows[part.keys[sample]]
        assert whole.labels[before] == part.labels[sample]
        assert np.array_equal(whole.encoded(before), part.encoded(sample))
    assert digits.trained_on(None) is digits and len(digits.trained_on(1.0).splits["train"]) == len(whole)
    # a run counts its epochs of the part, and no batch holds anything else
    run = make_run("train_share=0.25", "steps=12")
    trainer = Trainer(run, digits, LocalContext())
    with trainer.open_batches(0, 12) as batches:
        seen = {int(index) for batch in batches for index in batch.index}
    assert seen == set(range(len(part))), "two epochs of 352 images"
    trainer.run_to_end()
    (last,) = [entry for step, entry in entries(run, TrainEntry) if step == 12]
    assert last.epoch == pytest.approx(12 * 64 / len(part), abs=0.01)


def test_a_share_that_leaves_no_image_of_a_class_is_refused(digits):
    with pytest.raises(UserError, match=r"train_share 0.005 leaves no image of class .*; take a larger one"):
        digits.trained_on(0.005)
