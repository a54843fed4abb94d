"""Training on a Ray cluster of several nodes: drivers, workers and nodes that die, a node that is cut off, a user."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import version

import pytest

from resnet_pipeline.adapters.ray.worker import WORKER_VARIABLES
from resnet_pipeline.config_io import parse_assignments, with_overrides
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.training.metrics_log import (
    NoteEntry,
    ResumeEntry,
    TrainEntry,
    ValidationEntry,
    complete_lines,
    entries_of,
)
from resnet_pipeline.training.run_directory import RunDirectory, run_name
from tests.launching import launch
from tests.metrics import entries

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore")]

SMALL = ["eval_every=1000", "checkpoint_every=5", "log_every=5", "bn_images=128"]


def config(*changes: str):
    return with_overrides(get_recipe("digits/resnet8"), parse_assignments([*SMALL, *changes]))


def reference(digits, tmp_path, run_config, world: int) -> RunDirectory:
    """Train the same config in plain processes."""
    run = RunDirectory.create(tmp_path / "reference", run_config, digits.facts)
    for process in launch(run, digits, world):
        assert process.wait(600) == 0
    return run


def losses(run: RunDirectory) -> list[tuple[int, float]]:
    return [(step, entry.figures["loss"]) for step, entry in entries(run, TrainEntry)]


def wait_for_steps(run: RunDirectory, steps: int = 10) -> None:
    """Wait until there are checkpoints of ``steps`` more steps than now."""

    def newest() -> int:
        return (checkpoint_steps(run.checkpoints) or [0])[-1]

    start, deadline = newest(), time.monotonic() + 150
    while newest() < start + steps:
        assert time.monotonic() < deadline, f"no checkpoint after step {start}"
        time.sleep(0.02)


def command(workspace, *more: str) -> list[str]:
    changes = [part for change in SMALL for part in ("--set", change)]
    start = [sys.executable, "-m", "resnet_pipeline.cli", "train", "digits/resnet8", "--dataset", "digits"]
    return [*start, "--root", str(workspace.root), "--no-register", *changes, *more]


def run_command(workspace, *more: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Train by the command line, as a user does: each driver is a process of its own."""
    return subprocess.run(
        command(workspace, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds,
        check=False,
    )  # fmt: skip


def in_background(work: Callable[[], None]) -> Callable[[], None]:
    """Start a function in a thread; the returned one waits for its end and raises what it raised."""
    raised: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()

    def finish() -> None:
        thread.join(120)
        assert not thread.is_alive()
        if raised:
            raise raised[0]

    return finish


def test_an_interrupted_run_on_the_cluster_saves_at_once(workspace, digits, cluster):
    # one worker: it must fit on a node, although the cluster may have more CPUs in all than each node
    options = ("--steps", "3000", "--set", "checkpoint_every=5000")
    run_config = config("steps=3000", "checkpoint_every=5000")
    run = RunDirectory(workspace.runs / run_name(run_config, digits.fingerprint))
    process = subprocess.Popen(
        command(workspace, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 150
    while not run.metrics_file.exists() or not losses(run):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ((_, worker),) = cluster.workers()
    variables = {**WORKER_VARIABLES, "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"]}
    assert variables.items() <= worker.environ().items()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "saving the state" in out and "the same command resumes it" in out, out
    assert len(checkpoint_steps(run.checkpoints)) == 1 and run.result() is None


def test_a_run_validated_by_another_worker_has_the_errors_and_weights_of_one_that_waits(
    workspace, digits, tmp_path, cluster
):
    changes = ("eval_every=10", "checkpoint_every=20")
    run_config = config("steps=60", *changes)
    run = RunDirectory(workspace.runs / run_name(run_config, digits.fingerprint))
    options = ["--steps", "60", *(part for change in changes for part in ("--set", change))]
    done = run_command(workspace, *options, "--workers", "1", "--validate-aside")
    assert done.returncode == 0, done.stdout
    expected = reference(digits, tmp_path, run_config, world=1)
    assert run.result().weights_sha256 == expected.result().weights_sha256
    found, whole = entries(run, ValidationEntry), entries(expected, ValidationEntry)
    # this training may be too fast for each to be tested; the newest one always is
    assert all(one in whole for one in found) and found[-2:] == whole[-2:]
    assert {tuple(entry.figures) for _, entry in found} == {tuple(whole[0][1].figures)}, "a line shows the first"
    skipped = [entry.text for _, entry in entries(run, NoteEntry)]
    assert len(found) + len(skipped) == len(whole) and all("was not tested" in text for text in skipped), skipped
    lowest = min(entry.figures["top1"] for _, entry in found)
    assert run.result().best["top1"] == lowest


def test_a_driver_of_another_version_than_the_nodes_is_refused(workspace, cluster, tmp_path, monkeypatch):
    installed = tmp_path / "other" / "torch-0.0.1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, (str(installed.parent), os.environ.get("PYTHONPATH"))))
    )
    done = run_command(workspace)
    assert done.returncode == 2, done.stdout
    line = done.stdout.splitlines()[-1]
    assert "Ray's nodes have other versions" in line and f"has torch {version('torch')}, here is 0.0.1" in line
    assert not list(workspace.runs.glob("*"))


@pytest.mark.soak
def test_an_elastic_run_goes_on_with_the_workers_that_are_left(workspace, digits, cluster):
    run_config = config("steps=120")
    run = RunDirectory(workspace.runs / run_name(run_config, digits.fingerprint))

    def trouble() -> None:  # the head and one more node are left
        wait_for_steps(run)
        for name in {name for name, _ in cluster.workers()} - {"head"}:
            cluster.kill(name)

    finish = in_background(trouble)
    done = run_command(workspace, "--steps", "120", "--workers", "1-2")
    assert done.returncode == 0, done.stdout
    finish()
    result = run.result()
    assert result.workers == 1 and "1 worker(s) resume from step" in done.stdout
    assert [step for step, _ in losses(run)] == list(range(5, 121, 5))
    assert result.validation["top1"] < 15


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_an_elastic_run_saves_before_it_shrinks_or_grows(workspace, digits, cluster):
    endless = ("--steps", "100000", "--set", "checkpoint_every=100000", "--set", "eval_every=100000")
    run_config = config("steps=100000", "checkpoint_every=100000", "eval_every=100000")
    run = RunDirectory(workspace.runs / run_name(run_config, digits.fingerprint))

    def resumed() -> list[tuple[int, int]]:
        return [(step, e.workers) for step, e in entries_of(complete_lines(run.metrics_file), ResumeEntry) if step]

    def steps_reported() -> list[int]:
        return [step for step, _ in entries_of(complete_lines(run.metrics_file), TrainEntry)]

    def wait_for(reached: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, (resumed(), losses(run)[-1:])
            time.sleep(0.2)

    cluster.add()  # in place of the one that the run before lost
    process = subprocess.Popen(
        command(workspace, *endless, "--workers", "1-2"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_for(
            lambda: len(cluster.workers()) == 2, 200
        )  # with one at first, where Ray does not know the new node yet
        written = run.metrics_file.stat().st_size if run.metrics_file.exists() else 0
        wait_for(lambda: run.metrics_file.exists() and run.metrics_file.stat().st_size > written, 200)
        (name,) = {name for name, _ in cluster.workers()} - {"head"}
        before, attempts = checkpoint_steps(run.checkpoints)[-1:], len(resumed())
        cluster.announce_end(name, seconds=120)
        wait_for(lambda: checkpoint_steps(run.checkpoints)[-1:] != before, 120)
        announced = checkpoint_steps(run.checkpoints)[-1]
        cluster.kill(name)
        wait_for(lambda: len(resumed()) > attempts, 200)
        assert resumed()[attempts:] == [(announced, 1)]
        cluster.add()
        wait_for(lambda: len(resumed()) > attempts + 1, 300)  # Ray thinks of growing once a minute
        (step, workers), newest = resumed()[-1], checkpoint_steps(run.checkpoints)[-1]
        assert workers == 2 and step == newest > announced
        wait_for(lambda: steps_reported()[-1] > step, 100)  # both train on from there
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "1 worker(s) resume" in out and "2 worker(s) resume" in out, out


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("trouble", ["raylet", "frozen"])
def test_a_lost_raylet_and_a_frozen_worker_cost_no_step(workspace, digits, tmp_path, cluster, monkeypatch, trouble):
    monkeypatch.setenv("RESNET_PIPELINE_TIMEOUT", "15")  # until a worker that has stopped is given up
    # long enough that Ray notices before the end on any machine
    run_config = config("steps=400", "checkpoint_every=10")
    run = RunDirectory(workspace.runs / run_name(run_config, digits.fingerprint))
    name = cluster.add()

    def make_trouble() -> None:
        wait_for_steps(run, 20)
        lost = next((worker for worker in cluster.workers() if worker[0] == name), cluster.workers()[0])
        if trouble == "raylet":
            cluster.kill_raylet(lost[0])
        else:
            lost[1].suspend()  # it holds its place, and answers nobody

    finish = in_background(make_trouble)
    options = ("--steps", "400", "--set", "checkpoint_every=10", "--workers", "2", "--max-failures", "3")
    done = run_command(workspace, *options, seconds=900)
    finish()
    assert done.returncode == 0, done.stdout
    expected, result = reference(digits, tmp_path, run_config, 2), run.result()
    assert result.weights_sha256 == expected.result().weights_sha256
    assert result.workers == 2 and losses(run) == losses(expected)
    resumed = [step for step, _ in entries_of(complete_lines(run.metrics_file), ResumeEntry) if step]
    assert resumed and resumed[0] >= 20, "what stopped one of two workers stopped the run"


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_two_workers_survive_everything_and_end_bit_identical(workspace, digits, tmp_path, cluster):
    run_config = config("steps=150")
    run = RunDirectory(workspace.runs / run_name(run_config, digits.fingerprint))
    # the driver is killed; the cluster ends what it had started
    driver = subprocess.Popen(command(workspace, "--steps", "150", "--workers", "2"), stdout=subprocess.DEVNULL)
    wait_for_steps(run, 5)
    driver.kill()
    driver.wait()
    for _ in range(2 if cluster.namespaces else 1):
        cluster.add()

    def trouble() -> None:
        wait_for_steps(run)
        cluster.workers()[0][1].send_signal(signal.SIGKILL)
        wait_for_steps(run)
        cluster.kill(cluster.workers()[0][0])
        if cluster.namespaces:  # the nodes have cables of their own: one is cut off and its processes live on
            wait_for_steps(run)
            cluster.cut_off(cluster.workers()[0][0])

    finish = in_background(trouble)
    done = run_command(workspace, "--steps", "150", "--workers", "2", "--max-failures", "6", seconds=900)
    assert done.returncode == 0, done.stdout
    finish()
    expected, result = reference(digits, tmp_path, run_config, 2), run.result()
    assert result.weights_sha256 == expected.result().weights_sha256
    assert result.workers == 2
    assert losses(run) == losses(expected) and len(losses(run)) == 30
    resumed = [step for step, _ in entries_of(complete_lines(run.metrics_file), ResumeEntry) if step]
    assert len(resumed) >= (4 if cluster.namespaces else 3) and resumed == sorted(resumed) and resumed[0] >= 5
    assert "2 worker(s) resume from step" in done.stdout
    # more workers than the cluster ever has
    refused = run_command(workspace, "--set", "batch=256", "--workers", "8")
    assert refused.returncode == 2 and re.search(r"workers=8, but the Ray cluster has \d CPUs", refused.stdout)
