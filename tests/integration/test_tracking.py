"""Metrics, files and versions on their way to a real MLflow server that is away, frozen or slow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from mlflow.store.artifact import artifact_repository_registry

from resnet_pipeline.adapters.mlflow.artifacts import PatientArtifacts
from resnet_pipeline.adapters.mlflow.client import TrackingAwayError, guarded
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.jobs import register as registering
from resnet_pipeline.jobs.attempt import delivering
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.provenance import start_tags
from resnet_pipeline.jobs.register import register_run
from resnet_pipeline.jobs.train import run_config, train_run
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import CheckpointEntry, SystemEntry, TrainEntry, ValidationEntry
from resnet_pipeline.workspace import Workspace
from tests.integration.conftest import free_port
from tests.metrics import entries, steps_of
from tests.proxy import Proxy

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]


class Server:
    """An MLflow server that can be killed and started again on the same store."""

    def __init__(self, folder) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        self._command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
        self._command += ["--artifacts-destination", str(folder / "artifacts")]

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError("MLflow does not answer")

    def kill(self) -> None:
        if self._process.poll() is None:
            for one in self._tree():
                one.kill()
            self._process.wait(30)

    def freeze(self) -> None:
        """Let it take connections and answer nothing."""
        for one in self._tree():
            one.suspend()

    def thaw(self) -> None:
        for one in self._tree():
            one.resume()

    def _tree(self) -> list[psutil.Process]:
        process = psutil.Process(self._process.pid)
        return [*process.children(recursive=True), process]


@pytest.fixture(scope="module")
def server(tmp_path_factory, mlflow_database):
    """Return an MLflow server that runs."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(mlflow_database, folder / "mlflow.db")
    server = Server(folder)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.fixture
def impatient(monkeypatch):
    """Let MLflow's client be away after one try; files are waited for as ever."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")


@pytest.fixture
def between(server, workspace, impatient, monkeypatch):
    """Return a proxy between this workspace and the server."""
    proxy = Proxy("127.0.0.1", server.port)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
    yield proxy
    proxy.close()


@pytest.mark.parametrize("trouble", ["killed", pytest.param("frozen", marks=pytest.mark.soak)])
def test_mlflow_away_for_a_while_costs_no_metric_and_holds_no_step(
    make_run, digits, mlflow_database, tmp_path, monkeypatch, caplog, trouble, request
):
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    server = Server(tmp_path)
    if trouble == "frozen":
        request.getfixturevalue("impatient")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    run = make_run("steps=45", "log_every=3", "eval_every=15", "checkpoint_every=15")
    tracking = Tracking(Workspace(tmp_path / "work"))
    steps = 0

    def said() -> list[str]:
        return [message for message in caplog.messages if "MLflow" in message]

    def until(reached) -> None:
        """Let training wait, between two steps, for what the background thread does."""
        deadline = time.monotonic() + 100
        while not reached():
            assert time.monotonic() < deadline, said()
            time.sleep(0.05)

    def events() -> bool:
        nonlocal steps
        steps += 1
        if steps == 15:  # what the run is has been recorded long before its end
            until(lambda: tracking.client.get_run(tracking.run_id(run)).data.metrics.get("train/loss"))
            found = tracking.client.get_run(tracking.run_id(run))
            assert found.data.params["optim.lr"] == "0.1" and found.info.status == "RUNNING"
            tags = found.data.tags
            assert tags["dataset_fingerprint"] == digits.fingerprint and tags["recipe"] == "digits/resnet8"
            assert {"git_commit", "hardware", "torch", "python"} <= set(tags)
            server.kill() if trouble == "killed" else server.freeze()
        if steps == 20:  # there has been something to deliver since
            until(said)
        if steps == 30:
            server.start() if trouble == "killed" else server.thaw()
            server.wait()
            until(lambda: len(said()) > 1)
        return False

    server.start()
    try:
        server.wait()
        with delivering(tracking, run, digits, start_tags(run, digits, (1,))):
            assert train(run, digits, LocalContext(stop=events))
        for kind, value_of, name in (
            (TrainEntry, lambda entry: entry.figures["loss"], "train/loss"),
            (TrainEntry, lambda entry: entry.pace.step_p95, "train/pace/step_seconds_p95"),
            (ValidationEntry, lambda entry: entry.figures["top1"], "val/top1_error"),
            (CheckpointEntry, lambda entry: entry.bytes, "train/checkpoint/bytes"),
        ):
            arrived = tracking.client.get_metric_history(tracking.run_id(run), name)
            expected = [(step, value_of(entry)) for step, entry in entries(run, kind)]
            assert sorted((m.step, m.value) for m in arrived) == expected, name
        arrived = tracking.client.get_metric_history(tracking.run_id(run), "system/cpu_utilization_percentage")
        assert len(arrived) == len(entries(run, SystemEntry)) > 0
    finally:
        server.kill()
    away, back = said()
    assert "training goes on" in away and "MLflow answers again" in back
    # steps 20 to 30 were made while the server was away, and it came back only after them: none waited for it
    assert steps_of(run, TrainEntry) == list(range(3, 46, 3))


SMALL = {"bn_images": 64, "log_every": 2, "eval_every": 6, "checkpoint_every": 6}
ALONE = Launch(launcher="local")


@pytest.mark.parametrize("trouble", [Proxy.leave, pytest.param(Proxy.freeze, marks=pytest.mark.soak)])
def test_a_training_that_mlflow_never_heard_of_is_recorded_by_the_same_command(between, workspace, trouble):
    trouble(between)
    config = run_config("digits/resnet8", SMALL, steps=6)
    with pytest.raises(TrackingAwayError) as error:
        train_run(workspace, config, "digits", ALONE)
    said = str(error.value)
    assert "\n" not in said and re.fullmatch(
        rf"digits/resnet8 is trained \({workspace.runs}/\S+\), but not all of it is recorded: MLflow at {between.url} "
        "does not answer; start its server, or mend MLFLOW_TRACKING_URI; then the same command does the rest",
        said,
    ), said
    between.come_back() if trouble is Proxy.leave else between.thaw()
    again = train_run(workspace, config, "digits", ALONE)
    tracking = Tracking(workspace)
    found = tracking.client.get_run(again.mlflow_run)
    assert again.reused and found.info.status == "FINISHED" and found.data.params["steps"] == "6"
    arrived = tracking.client.get_metric_history(again.mlflow_run, "train/loss")
    assert sorted(m.step for m in arrived) == [2, 4, 6]
    kept = {file.path for file in tracking.client.list_artifacts(again.mlflow_run, "run")}
    assert kept == {"run/config.json", "run/metrics.jsonl", "run/result.json"}


@pytest.mark.parametrize("reached", ["nothing", "the version"])
def test_mlflow_away_while_a_network_is_registered_leaves_it_to_the_same_command(
    between, workspace, reached, monkeypatch
):
    trained = train_run(workspace, run_config("digits/resnet8", SMALL, steps=6, seed=1), "digits", ALONE)
    name, then = reached.replace(" ", "-"), registering.record_tests

    def away_now(*arguments, **named) -> None:
        between.leave()
        then(*arguments, **named)

    if reached == "nothing":
        between.leave()
    else:
        monkeypatch.setattr(registering, "record_tests", away_now)
    with pytest.raises(TrackingAwayError, match=r"is trained \(.*\), but not registered: .*the same command does the"):
        register_run(workspace, trained, name=name)
    between.come_back()
    monkeypatch.setattr(registering, "record_tests", then)
    client = Tracking(workspace).client
    if reached == "the version":  # as if it had been away before the version had its alias
        client.delete_registered_model_alias(name, "candidate")
    version = register_run(workspace, trained, name=name)
    assert version.version == "1" and client.get_model_version_by_alias(name, "candidate").version == "1"
    assert {"val/top1_error", "val/top5_error"} <= set(client.get_run(trained.mlflow_run).data.metrics)
    assert client.get_model_version(name, "1").description.startswith("# digits/resnet8 on digits")


def test_a_file_takes_as_long_as_the_way_to_mlflow_s_storage_does(between, workspace, tmp_path, monkeypatch):
    tracking = Tracking(workspace)
    run = tracking.client.create_run(tracking.experiment("digits")).info
    (tmp_path / "file").write_bytes(os.urandom(4_000_000))
    between.rate = 1e6  # the proxy has all of it at once, and the server after seconds
    repository = PatientArtifacts(run.artifact_uri, between.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    repository.log_artifact(str(tmp_path / "file"), "folder")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
    between.rate = None
    tracking.client.log_artifact(run.run_id, str(tmp_path / "file"))  # the same, as MLflow's client does it
    for name in ("file", "folder/file"):
        path = tracking.client.download_artifacts(run.run_id, name, str(tmp_path))
        assert Path(path).read_bytes() == (tmp_path / "file").read_bytes()
    made = artifact_repository_registry.get_artifact_repository(run.artifact_uri, between.url)
    assert isinstance(made, PatientArtifacts), "MLflow's client sends files by it"


def test_a_file_for_a_server_that_is_frozen_is_given_up(between, workspace, tmp_path, monkeypatch):
    tracking = Tracking(workspace)
    run = tracking.client.create_run(tracking.experiment("digits")).info
    (tmp_path / "file").write_bytes(os.urandom(100))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    between.freeze()
    with pytest.raises(TrackingAwayError, match="does not answer"):
        guarded(lambda: tracking.client.log_artifact(run.run_id, str(tmp_path / "file")))
