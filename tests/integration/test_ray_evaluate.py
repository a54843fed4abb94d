"""Evaluation on Ray: the same scores as in one process, on any number of workers; a worker's error is the user's."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from resnet_pipeline.adapters.ray import evaluate as adapter
from resnet_pipeline.adapters.ray.cluster import ray_cluster
from resnet_pipeline.adapters.ray.train import standing_workers
from resnet_pipeline.config import ViewConfig
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation import scoring
from resnet_pipeline.evaluation.protocols import TestSpec, protocol_of
from resnet_pipeline.evaluation.scores import Parts
from resnet_pipeline.evaluation.scoring import evaluate, plan_chunks
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.progress import progress
from resnet_pipeline.workspace import Workspace
from tests.secret_markers import MARKER, NOWHERE, SERVERS, files_with_marker

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def ray_folder(monkeypatch):
    """Return a folder for Ray's sessions, with their logs; its path is short, as their sockets need it."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def test_lost_workers_are_replaced_and_cost_no_image_and_no_bit(tmp_path, digits, monkeypatch):
    """Workers die in their first work, as by the kernel's hand: the first of two, or all."""
    monkeypatch.setattr(scoring, "CHUNK_PIXELS", 60 * 32 * 32)  # seven chunks
    torch.manual_seed(0)
    model = Classifier(Normalize(torch.tensor([90.0] * 3)), build_model("cifar-resnet8")).eval()
    protocol = protocol_of("center", ViewConfig(crop=32, resize=32))
    plan = plan_chunks(digits, "val", protocol, np.arange(len(digits.splits["val"])))
    (tmp_path / "opened").mkdir()

    def dying(folder: Path, most: int):
        class Dying(adapter._Worker):
            def open(self, *arguments):
                (folder.parent / "opened" / str(os.getpid())).touch()
                return super().open(*arguments)

            def score(self, *arguments):
                if len(list(folder.iterdir())) < most:
                    (folder / str(os.getpid())).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().score(*arguments)

        folder.mkdir()
        return Dying

    def run(name: str, workers: int):
        parts = {"a": Parts(tmp_path / name / "scores.parquet", [len(chunk) for chunk in plan.chunks])}
        lacking = {number: ["a"] for number in range(len(plan.chunks))}
        with progress(name, total=len(plan.keys)) as bar:
            adapter.score_on_ray(
                {"a": model}, Workspace(tmp_path), plan, parts=parts, lacking=lacking, digests={"a": "0" * 64},
                workers=workers, bar=bar,
            )  # fmt: skip
            assert bar.reached == len(plan.keys)
        return parts["a"].merge(plan.keys)

    with ray_cluster():
        monkeypatch.setattr(adapter, "_Worker", dying(tmp_path / "first", 1))
        found = run("the first", 2)
        assert found.keys == digits.splits["val"].keys
        expected = evaluate({"a": model}, digits, protocol)["a"]
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
        assert len(list((tmp_path / "opened").iterdir())) <= 3, "the networks are loaded once per worker"
        monkeypatch.setattr(adapter, "_MOST_LOSSES", 1)
        monkeypatch.setattr(adapter, "_Worker", dying(tmp_path / "all", 99))
        with pytest.raises(UserError, match=r"^evaluation failed on Ray: .*, 2 times$") as error:
            run("all", 1)
        assert "\n" not in str(error.value)


def test_two_workers_give_the_scores_of_one_process(tmp_path, digits, monkeypatch, ray_folder, capfd):
    for name in SERVERS:
        monkeypatch.setenv(name, NOWHERE)  # a password in an address
    monkeypatch.setattr(scoring, "CHUNK_PIXELS", 600 * 32 * 32)
    torch.set_num_threads(2)  # the workers have another number each
    torch.manual_seed(0)
    torch.save(build_model("cifar-resnet8").state_dict(), tmp_path / "8.pth")

    def run(name: str, protocol: str, workers: int | None):
        workspace = Workspace(tmp_path / name)
        if not Path(workspace.data).exists():
            shutil.copytree(digits.path, Path(workspace.data) / "digits")
        start = time.perf_counter()
        (found,) = evaluate_models(
            workspace,
            [f"cifar-resnet8={tmp_path / '8.pth'}"],
            TestSpec(dataset="digits", protocol=protocol, workers=workers),
        )
        assert found.scores.seconds < time.perf_counter() - start, "workers' seconds are not added up"
        assert not list(workspace.scores.glob("*/*/*/*.parts"))
        return found.scores

    with ray_cluster():
        assert os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] == "0", "nobody takes this machine away"
        assert os.environ["RAY_TRAIN_METRICS_ENABLED"] == "0", "nobody reads a cluster's metrics that has no dashboard"
        one = run("one", "10-crop", None)
        with standing_workers(Workspace(tmp_path / "standing"), 2):  # they have all CPUs, and leave them to the test
            two = run("two", "10-crop", 2)
        assert two.keys == one.keys == digits.splits["val"].keys
        np.testing.assert_array_equal(two.probabilities, one.probabilities)
        with pytest.raises(UserError, match="at most"):
            run("two", "center", 99)
        split = digits.splits["val"]
        shard = tmp_path / "two" / "datasets" / "digits" / "shards" / split.shard_of(len(split) - 1)
        shard.write_bytes(bytes(shard.stat().st_size))
        with pytest.raises(UserError, match=r"shard .* does not match its checksum") as error:
            run("two", "center", 1)
        assert "\n" not in str(error.value)
    left = os.environ.keys() & {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "RAY_TRAIN_METRICS_ENABLED"}
    assert not left, "the next cluster may be another one"
    # nothing that Ray or this program has kept or said has the password
    assert list(ray_folder.rglob("logs/raylet.out"))
    assert files_with_marker(ray_folder) == files_with_marker(tmp_path) == []
    said = capfd.readouterr()
    assert MARKER not in said.out + said.err
