"""Training on hosts that share no folder: what a run keeps is in a bucket, what its processes say goes through Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from resnet_pipeline.config_io import parse_assignments, with_overrides
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.training.metrics_log import ResumeEntry, TrainEntry, complete_lines, entries_of, read_metrics
from resnet_pipeline.training.run_directory import RunDirectory, run_name
from tests.integration.nodes import SETTINGS, Nodes
from tests.launching import launch
from tests.s3_server import KEYS

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]

SMALL = ["eval_every=1000", "checkpoint_every=5", "log_every=5", "bn_images=128"]
BUCKET = "s3://cluster"
OTHERS = ("AWS_", "RESNET_PIPELINE_", "MLFLOW_", "PREFECT_")  # settings of whoever runs the tests


@dataclass(frozen=True)
class Hosts:
    """Two hosts and a bucket with the digits; ``environment`` is what a driver beside the head needs."""

    nodes: Nodes
    environment: dict[str, str]

    def left(self) -> list[str]:
        """Return what workers have left in their own folders."""
        own = [path / "tmp/cache" for path in self.nodes.roots()]
        assert all((cache / "runs").is_dir() for cache in own), "they have worked there"
        return [str(file) for cache in own for file in (cache / "runs").rglob("*") if file.is_file()]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, sharded_digits) -> Iterator[Hosts]:
    """Start an S3 server that all hosts reach, put the digits there, and start the hosts."""
    import boto3
    from moto.server import ThreadedMotoServer

    folder = tmp_path_factory.mktemp("hosts")
    with pytest.MonkeyPatch.context() as environment:
        for name in [
            name for name in os.environ if name.startswith(("AWS_", "RESNET_PIPELINE_", "MLFLOW_", "PREFECT_"))
        ]:
            environment.delenv(name)
        server = ThreadedMotoServer("0.0.0.0", 0, verbose=False)
        server.start()
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line per request
        own = {
            **KEYS,
            "RESNET_PIPELINE_CACHE": "/tmp/cache",  # of the host's own /tmp
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        cluster = Nodes(folder, own)
        own["AWS_ENDPOINT_URL"] = f"http://{cluster.host}:{server.get_host_and_port()[1]}"
        for name, value in own.items():
            environment.setenv(name, value)
        environment.delenv("RESNET_PIPELINE_CACHE")
        boto3.session.Session().client("s3").create_bucket(Bucket=BUCKET.removeprefix("s3://"))
        storage = storage_at(f"{BUCKET}/datasets/digits")
        for stored in sharded_digits.storage.files():
            storage.write(stored.name, sharded_digits.path / stored.name)
        driver = {
            **SETTINGS,
            "RAY_ADDRESS": cluster.address,
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
            "RESNET_PIPELINE_DATA": f"{BUCKET}/datasets",
            "RESNET_PIPELINE_RUNS": f"{BUCKET}/runs",
        }
        try:
            cluster.start()
            for _ in range(2):
                cluster.add()
            yield Hosts(cluster, {**os.environ, **driver})
        finally:
            cluster.close()
            server.stop()


def losses(run: RunDirectory) -> list[tuple[int, float]]:
    return [(step, entry.figures["loss"]) for step, entry in entries_of(read_metrics(run.metrics_file), TrainEntry)]


def start(hosts: Hosts, root: Path, *more: str, **changed: str) -> subprocess.Popen[str]:
    """Start a training by the command line, with a root of its own, as another machine would."""
    changes = [part for change in SMALL for part in ("--set", change)]
    command = [sys.executable, "-m", "resnet_pipeline.cli", "train", "digits/resnet8", "--dataset", "digits"]
    return subprocess.Popen(
        [*command, "--root", str(root), "--no-register", "--workers", "2", *changes, *more],
        env={**hosts.environment, **changed},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], status: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    return output


def run_of(digits, root: Path, *changes: str) -> tuple[RunDirectory, Storage]:
    """Return a run as a driver with this root has it, and its home."""
    config = with_overrides(get_recipe("digits/resnet8"), parse_assignments([*SMALL, *changes]))
    name = run_name(config, digits.fingerprint)
    return RunDirectory(root / "runs" / name), storage_at(f"{BUCKET}/runs/{name}")


def steps_at(home: Storage) -> list[int]:
    names = (Path(stored.name) for stored in home.files("checkpoints/"))
    return sorted(int(name.stem.removeprefix("step-")) for name in names if name.suffix == ".json")


def wait_for_step(home: Storage, process: subprocess.Popen[str], step: int) -> None:
    """Wait until the checkpoint of this step, or a later one, is in the bucket."""
    deadline = time.monotonic() + 400
    while (steps_at(home) or [0])[-1] < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no checkpoint of step {step} in {home.url}"
        time.sleep(0.2)


@contextlib.contextmanager
def stopped_workers(hosts: Hosts, *, after: Callable[[], bool]) -> Iterator[None]:
    """Wait for something, and stop both workers while inside."""
    deadline = time.monotonic() + 100
    while not after():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = [worker for _, worker in hosts.nodes.workers()]
    assert len(workers) == 2
    for worker in workers:
        worker.suspend()
    try:
        yield
    finally:
        for worker in workers:
            worker.resume()


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Return what a process says up to the line with these words."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if words in line:
            return said
    raise AssertionError(said)


def reference(digits, tmp_path: Path, *changes: str) -> RunDirectory:
    """Train the same config in two plain processes."""
    config = with_overrides(get_recipe("digits/resnet8"), parse_assignments([*SMALL, *changes]))
    run = RunDirectory.create(tmp_path / "reference", config, digits.facts)
    for process in launch(run, digits, 2):
        assert process.wait(400) == 0
    return run


def test_a_run_lives_in_the_bucket_and_goes_on_from_another_machine(sharded_digits, tmp_path, hosts):
    roots = first, second = tmp_path / "first", tmp_path / "second"
    (run, home), (resumed, _) = (run_of(sharded_digits, root, "steps=60") for root in roots)
    process = start(hosts, first, "--steps", "60")
    wait_for_step(home, process, 5)
    process.send_signal(signal.SIGINT)
    said = ended(process, 130)
    assert f"stopped and saved in {home.url}" in said
    assert run.result() is None and checkpoint_steps(run.checkpoints) == [], "the driver's machine has none"
    said = ended(start(hosts, second, "--steps", "60"))
    expected = reference(sharded_digits, tmp_path, "steps=60")
    assert resumed.result().weights_sha256 == expected.result().weights_sha256
    resumed.check_weights(resumed.result().weights_sha256)
    assert losses(resumed) == losses(expected) and len(losses(resumed)) == 12
    (step,) = [step for step, _ in entries_of(complete_lines(resumed.metrics_file), ResumeEntry) if step]
    assert 5 <= step < 60 and f"2 worker(s) resume from step {step}" in said
    # all that a run keeps is in the bucket, and nothing on the hosts
    kept = {"config.json", "metrics.jsonl", "mlflow.json", "recorded", "result.json", "weights.safetensors"}
    assert {stored.name for stored in home.files() if "/" not in stored.name} == kept
    assert steps_at(home) == [55, 60]
    assert hosts.left() == []


def test_a_training_goes_on_without_who_started_it_and_is_followed_by_who_starts_it_again(
    sharded_digits, tmp_path, hosts
):
    first, second = tmp_path / "first", tmp_path / "second"
    changes = ("--steps", "80", "--seed", "2")
    resumed, home = run_of(sharded_digits, second, "steps=80", "seed=2")
    process = start(hosts, first, *changes)
    wait_for_step(home, process, 5)
    process.kill()
    process.wait()
    left = steps_at(home)[-1]
    with stopped_workers(hosts, after=lambda: steps_at(home)[-1] > left):  # else they had finished before it is there
        again = start(hosts, second, *changes)
        begin = read_until(again, "it is trained on the cluster already")
    said = begin + ended(again)
    assert f"it is trained on the cluster already ({home.url}); following that" in said
    assert "80/80 steps" in said and "resume from step" not in said, "the first workers have finished it"
    history = read_metrics(resumed.metrics_file)
    assert [step for step, _ in entries_of(complete_lines(resumed.metrics_file), ResumeEntry)] == [0]
    expected = reference(sharded_digits, tmp_path, "steps=80", "seed=2")
    assert resumed.result().weights_sha256 == expected.result().weights_sha256
    assert losses(resumed) == losses(expected) and len(history) == len(set(map(str, history)))
    assert hosts.nodes.processes("_Driver") == [] and hosts.nodes.workers() == [], "all have gone"


@pytest.mark.soak
def test_a_driver_that_is_lost_with_its_host_is_started_on_another(sharded_digits, tmp_path, hosts):
    run, home = run_of(sharded_digits, tmp_path / "root", "steps=100", "seed=3")
    process = start(hosts, tmp_path / "root", "--steps", "100", "--seed", "3")
    wait_for_step(home, process, 10)
    ((node, _),) = hosts.nodes.processes("_Driver")
    hosts.nodes.kill(node)
    hosts.nodes.add()
    said = ended(process)
    assert "the driver was lost and is started again" in said and "2 worker(s) resume from step" in said
    expected = reference(sharded_digits, tmp_path, "steps=100", "seed=3")
    assert run.result().weights_sha256 == expected.result().weights_sha256
    assert losses(run) == losses(expected)


@pytest.mark.soak
def test_a_host_that_is_lost_is_replaced_by_an_empty_one(sharded_digits, tmp_path, hosts):
    run, home = run_of(sharded_digits, tmp_path / "root", "steps=100", "seed=1")
    process = start(hosts, tmp_path / "root", "--steps", "100", "--seed", "1")
    wait_for_step(home, process, 10)
    ((driver, _),) = hosts.nodes.processes("_Driver")
    hosts.nodes.kill(next(node for node, _ in hosts.nodes.workers() if node != driver))
    hosts.nodes.add()
    said = ended(process)
    assert "2 worker(s) resume from step" in said
    expected = reference(sharded_digits, tmp_path, "steps=100", "seed=1")
    assert run.result().weights_sha256 == expected.result().weights_sha256
    assert losses(run) == losses(expected)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to make namespaces")
def test_a_root_that_a_host_does_not_see_is_named_at_once(tmp_path, hosts):
    said = ended(start(hosts, tmp_path / "mine", RESNET_PIPELINE_RUNS=""), 2)
    line = said.splitlines()[-1]
    assert re.search(r"Ray's node \S+, \S+ does not see .*/mine/runs/.*RESNET_PIPELINE_RUNS=s3://", line), said
