"""Metrics on their way to a real MLflow server that is stopped and started again while a run trains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.jobs.provenance import start_tags
from resnet_pipeline.jobs.train import delivering
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import CheckpointEntry, SystemEntry, TrainEntry, ValidationEntry
from resnet_pipeline.workspace import Workspace
from tests.integration.conftest import free_port
from tests.metrics import entries, steps_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]


class Server:
    """An MLflow server that can be killed and started again on the same store."""

    def __init__(self, folder) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        self._command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
        self._command += ["--default-artifact-root", (folder / "artifacts").as_uri()]

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
            process = psutil.Process(self._process.pid)
            for one in (*process.children(recursive=True), process):
                one.kill()
            self._process.wait(30)


def test_mlflow_away_for_a_while_costs_no_metric_and_holds_no_step(
    make_run, digits, mlflow_database, tmp_path, monkeypatch, caplog
):
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    server = Server(tmp_path)
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
            server.kill()
        if steps == 20:  # there has been something to deliver since
            until(said)
        if steps == 30:
            server.start()
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
