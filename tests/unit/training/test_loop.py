from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from resnet_pipeline.data.cache import CacheFolder
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import train_batches
from resnet_pipeline.models.weights import weights_sha256
from resnet_pipeline.training.bn_stats import recompute_statistics
from resnet_pipeline.training.checkpoint import newest_checkpoint
from resnet_pipeline.training.classifier import build_classifier
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import NonFiniteError, Trainer, train
from resnet_pipeline.training.run_directory import RunDirectory, read_metrics

WORKER = """
import sys
from pathlib import Path
import torch
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.training.context import torchrun_context
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
torch.set_num_threads(1)
with torchrun_context() as context:
    train(RunDirectory.open(Path(sys.argv[1])), Dataset.open(Path(sys.argv[2])), context)
"""


def launch(run: RunDirectory, dataset: Dataset, world: int) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(run.path), str(dataset.path)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]


def losses(run: RunDirectory) -> list[float]:
    return [line["loss"] for line in read_metrics(run.metrics_file) if line["kind"] == "train"]


def test_a_run_writes_metrics_checkpoints_weights_and_result(make_run, digits):
    run = make_run()
    assert train(run, digits, LocalContext())
    result = run.result()
    history = read_metrics(run.metrics_file)
    assert [h["step"] for h in history if h["kind"] == "train"] == [2, 4, 6, 8, 10, 12]
    assert [h["step"] for h in history if h["kind"] == "validation"] == [6, 12]
    assert result["images"] == 12 * 64 and result["validation"]["images"] == len(digits.splits["val"])
    assert losses(run)[-1] < losses(run)[0]
    path, problems = newest_checkpoint(run.checkpoints)
    assert path.name == "step-00000012.pt" and problems == []
    assert len(list(run.checkpoints.glob("*.pt"))) == 2
    before = run.result_file.stat().st_mtime_ns
    assert train(run, digits, LocalContext())  # finished: nothing is done again
    assert run.result_file.stat().st_mtime_ns == before


@pytest.mark.parametrize("at", [4, 7])
def test_a_run_that_was_stopped_ends_bit_identical(make_run, digits, at):
    whole = make_run(folder="whole")
    train(whole, digits, LocalContext())
    run = make_run(folder="stopped")
    steps = iter(range(at // 2))
    assert not train(run, digits, LocalContext(stop=lambda: next(steps, None) is None))
    assert run.result() is None
    assert train(run, digits, LocalContext())
    assert run.result()["weights_sha256"] == whole.result()["weights_sha256"]
    assert losses(run) == losses(whole)


@pytest.mark.slow
def test_a_killed_run_ends_bit_identical(make_run, digits):
    whole, run = make_run("steps=60", folder="whole"), make_run("steps=60", folder="killed")
    for process in launch(whole, digits, 1):
        assert process.wait(120) == 0
    (process,) = launch(run, digits, 1)
    deadline = time.monotonic() + 60
    while newest_checkpoint(run.checkpoints)[0] is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run.result() is None
    for process in launch(run, digits, 1):
        assert process.wait(120) == 0
    assert run.result()["weights_sha256"] == whole.result()["weights_sha256"]


@pytest.mark.slow
def test_two_workers_compute_what_one_does(make_run, digits):
    runs = {world: make_run("steps=20", folder=f"world{world}") for world in (1, 2)}
    for world, run in runs.items():
        for process in launch(run, digits, world):
            assert process.wait(120) == 0
    # float32: the same arithmetic but for the order of additions, which 20 steps amplify
    np.testing.assert_allclose(losses(runs[1]), losses(runs[2]), rtol=2e-3)
    assert losses(runs[1])[0] == pytest.approx(losses(runs[2])[0], rel=1e-5)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(make_run, digits):
    whole, run = make_run(folder="whole"), make_run(folder="damaged")
    train(whole, digits, LocalContext())
    steps = iter(range(4))
    train(run, digits, LocalContext(stop=lambda: next(steps, None) is None))
    newest, _ = newest_checkpoint(run.checkpoints)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    older, problems = newest_checkpoint(run.checkpoints)
    assert older != newest and newest.name in problems[0]
    train(run, digits, LocalContext())
    assert run.result()["weights_sha256"] == whole.result()["weights_sha256"]


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_samples(make_run, digits):
    run = make_run("optim.lr=1e9")
    with pytest.raises(NonFiniteError, match=r"step \d+ on rank 0.*train/\d/\d+\.JPEG"):
        train(run, digits, LocalContext())
    assert run.result() is None


def test_metrics_of_a_resumed_run_are_one_history(tmp_path):
    lines = [("train", 2), ("train", 4), ("train", 6), ("resume", 4), ("train", 6), ("train", 8)]
    text = "".join(json.dumps({"kind": k, "step": s, "loss": i}) + "\n" for i, (k, s) in enumerate(lines))
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "tra')
    history = read_metrics(tmp_path / "metrics.jsonl")
    assert [(h["step"], h["loss"]) for h in history] == [(2, 0), (4, 1), (6, 4), (8, 5)]


def test_final_batch_norm_statistics_are_true_averages(make_run, digits):
    config = make_run().config()
    model = build_classifier(config.model, digits, seed=0)
    options = {"augment": config.augment, "seed": 1, "batch": 64, "micro_batch": 32, "steps": 3}
    recompute_statistics(model, train_batches(digits, **options), torch.device("cpu"))
    outputs = []
    handle = model.network.conv1.register_forward_hook(lambda m, i, o: outputs.append(o))
    model.train()
    with torch.no_grad():
        for batch in train_batches(digits, **options):
            model(batch.images, batch.color)
    handle.remove()
    means = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    variances = torch.stack([o.var((0, 2, 3), unbiased=True) for o in outputs]).mean(0)
    fresh = build_classifier(config.model, digits, seed=0)
    recompute_statistics(fresh, train_batches(digits, **options), torch.device("cpu"))
    torch.testing.assert_close(fresh.network.bn1.running_mean, means, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fresh.network.bn1.running_var, variances, rtol=1e-4, atol=1e-4)


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
    torch.testing.assert_close(trainer.classifier.network.fc.weight.grad, total, rtol=1e-4, atol=1e-6)
    assert weights_sha256(trainer.classifier) == run.result()["weights_sha256"]


@pytest.mark.slow
def test_training_from_a_bucket_is_training_from_the_folder(make_run, sharded_digits, digits_in_s3, tmp_path):
    """A cold cache that holds a third of the shards: two blocks of the order."""
    changes = ["order=block", "block_shards=2", "steps=24", "eval_every=24"]  # more than an epoch
    largest = max(shard["bytes"] for shard in sharded_digits.manifest["splits"]["train"]["shards"])
    cache = CacheFolder(tmp_path / "cache", limit=5 * largest)
    for folder, dataset in (("folder", sharded_digits), ("bucket", Dataset.open(digits_in_s3, cache))):
        assert train(make_run(*changes, folder=folder), dataset, LocalContext())
    local, remote = (make_run(*changes, folder=folder) for folder in ("folder", "bucket"))
    assert remote.result()["weights_sha256"] == local.result()["weights_sha256"]
    assert remote.result()["validation"] == local.result()["validation"]
    waits = [
        [line["shard_wait_seconds"] for line in read_metrics(run.metrics_file) if line["kind"] == "train"]
        for run in (local, remote)
    ]
    assert set(waits[0]) == {0.0} and 0 < waits[1][0] <= waits[1][-1]
