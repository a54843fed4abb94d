"""Training on Ray: one node, two nodes, a worker that dies, a user who interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from resnet_pipeline.config import with_overrides
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.train import train_run
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.checkpoint import newest_checkpoint
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory, read_metrics, run_name
from resnet_pipeline.workspace import Workspace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore")]

SMALL = ["eval_every=40", "checkpoint_every=5", "log_every=5", "bn_images=128"]


@pytest.fixture
def workspace(tmp_path, digits):
    space = Workspace(tmp_path / "work")
    space.datasets.mkdir(parents=True)
    (space.datasets / "digits").symlink_to(digits.path)
    return space


@pytest.fixture(scope="module")
def two_nodes():
    """Return a Ray cluster of two nodes with a CPU each, and let this process's training join it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    yield cluster
    os.environ.pop("RAY_ADDRESS")
    cluster.shutdown()


def config(*changes: str):
    return with_overrides(get_recipe("digits/resnet8"), [*SMALL, *changes])


def reference(digits, tmp_path, run_config) -> RunDirectory:
    """Train the same config in this process."""
    about = {"name": digits.name, "fingerprint": digits.fingerprint, "classes": digits.classes}
    run = RunDirectory.create(tmp_path / "reference", run_config, about)
    train(run, digits, LocalContext())
    return run


def losses(run: RunDirectory) -> list[float]:
    return [line["loss"] for line in read_metrics(run.metrics_file) if line["kind"] == "train"]


def test_two_nodes_train_what_one_process_does_and_survive_a_killed_worker(workspace, digits, tmp_path, two_nodes):
    run_config = config("steps=60")
    run = RunDirectory(workspace.runs / run_name(run_config, digits.fingerprint))
    killed = []

    def kill_a_worker() -> None:
        while newest_checkpoint(run.checkpoints)[0] is None:
            time.sleep(0.05)
        workers = [
            p for p in psutil.process_iter(["cmdline"]) if "ray::RayTrainWorker" in " ".join(p.info["cmdline"] or [])
        ]
        killed.append(len(workers))
        workers[0].send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker, daemon=True)
    killer.start()
    said: list[str] = []
    trained = train_run(workspace, run_config, "digits", workers=2, say=said.append)
    assert killed and trained.result["workers"] == 2
    kinds = [line.split('"kind": "')[1].split('"')[0] for line in run.metrics_file.read_text().splitlines()]
    assert kinds.count("resume") == 1
    expected = reference(digits, tmp_path, run_config)
    assert losses(run)[0] == pytest.approx(losses(expected)[0], rel=1e-5)
    assert len(losses(run)) == len(losses(expected)) == 12
    # the workers can't be more than the cluster ever has
    with pytest.raises(UserError, match="2 CPUs on 2 node"):
        train_run(workspace, config("steps=6", "batch=128"), "digits", workers=4, say=said.append)


def test_an_interrupted_run_on_the_cluster_saves_and_stops(workspace, digits, two_nodes):
    # one worker: it must fit on a node, although the cluster has more CPUs in all than each node
    command = ["train", "digits/resnet8", "--dataset", "digits", "--root", str(workspace.root), "--steps", "1500"]
    command += [part for change in SMALL for part in ("--set", change)]
    run = RunDirectory(workspace.runs / run_name(config("steps=1500"), digits.fingerprint))
    process = subprocess.Popen(
        [sys.executable, "-m", "resnet_pipeline.cli", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 90
    while newest_checkpoint(run.checkpoints)[0] is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "saving the state" in out and "goes on from there" in out
    path, problems = newest_checkpoint(run.checkpoints)
    assert path is not None and problems == []
    assert run.result() is None
