"""A password in a server's address is used, and neither shown, nor kept, nor sent on."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from botocore.exceptions import EndpointConnectionError, InvalidProxiesConfigError

from resnet_pipeline.adapters.mlflow.registry import resolve
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.adapters.mlflow.sender import MetricsSender
from resnet_pipeline.errors import UserError
from resnet_pipeline.logs import configured
from resnet_pipeline.services.doctor import examine
from resnet_pipeline.services.temporary_prefect import TemporaryPrefect
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.storage.s3_errors import explained
from resnet_pipeline.training.metrics_log import MetricsLog
from resnet_pipeline.training.mirror import send
from resnet_pipeline.workspace import Workspace
from tests.metrics import training
from tests.secret_markers import MARKER, NOWHERE, SERVERS, files_with_marker


class MlflowOfOneRun(BaseHTTPRequestHandler):
    """As much of MLflow's API as a run's metrics need."""

    def do_GET(self) -> None:
        self._answer(
            {"experiment": {"experiment_id": "1", "name": "digits (resnet-pipeline)", "lifecycle_stage": "active"}}
        )

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        info = {"run_id": "0" * 32, "run_uuid": "0" * 32, "experiment_id": "1", "lifecycle_stage": "active"}
        self._answer({"run": {"info": info, "data": {}}, "run_info": info})

    def _answer(self, value: dict[str, object]) -> None:
        self.server.authorized.append("Authorization" in self.headers)
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def mlflow():
    server = ThreadingHTTPServer(("127.0.0.1", 0), MlflowOfOneRun)
    server.authorized = []
    thread = threading.Thread(target=server.serve_forever, args=[0.01])
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def found(folder, capfd):
    """Return where the marker is: files under a folder, and the output."""
    said = capfd.readouterr()
    assert said.out or said.err
    return [*files_with_marker(folder), *(line for line in (said.out + said.err).splitlines() if MARKER in line)]


@pytest.mark.slow
def test_a_run_keeps_and_mirrors_no_password(mlflow, make_run, digits, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{MARKER}@127.0.0.1:{mlflow.server_port}")
    run, workspace = make_run(), Workspace(tmp_path / "work")
    earlier = {"uri": Tracking(workspace).uri, "run_id": "0" * 32, "sent": 0, "steps": {}}
    for kept in (None, earlier):  # an earlier version's file is cleaned, and names the same run
        if kept:
            run.delivery_file.write_text(json.dumps(kept))
        log = MetricsLog(run.metrics_file)
        log.append(1, training(loss=1.0))
        log.close()
        with configured():
            MetricsSender(Tracking(workspace), run, digits, interval=0.01).close()
        send(run, LocalStorage(tmp_path / "mirror"))
        assert json.loads(run.delivery_file.read_text())["run_id"] == "0" * 32
    assert mlflow.authorized and all(mlflow.authorized)
    print("done")
    assert found(tmp_path, capfd) == []


@pytest.mark.slow
def test_messages_about_servers_name_no_password(workspace, make_run, digits, monkeypatch, capfd):
    for name in SERVERS:
        monkeypatch.setenv(name, NOWHERE + "/api")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with configured():
        MetricsSender(Tracking(workspace), make_run(), digits, interval=0.01).close()
    with pytest.raises(UserError) as error:
        resolve(Tracking(workspace), "models:/a/1")
    print(error.value)
    for of_s3 in (
        EndpointConnectionError(endpoint_url=NOWHERE + "/bucket"),
        InvalidProxiesConfigError(error_msg=f"no such proxy: '{NOWHERE}'"),
        ValueError(f"Invalid endpoint: {NOWHERE}"),
    ):
        with pytest.raises(UserError) as error, explained("s3://bucket/x"):
            raise of_s3
        print(error.value)
    print(TemporaryPrefect(workspace).page, *examine(workspace), sep="\n")
    assert found(workspace.root, capfd) == []


def test_the_doors_clean_what_reaches_them(monkeypatch, capfd, tmp_path):
    def fail() -> None:
        raise UserError(f"{NOWHERE} is no good")

    cli = importlib.import_module("resnet_pipeline.cli.main")  # the package's own ``main`` is the function
    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit):
        cli.main()
    with configured(logging.StreamHandler(sys.stderr)):
        logging.getLogger("resnet_pipeline.x").warning("%s does not answer", NOWHERE)
    assert found(tmp_path, capfd) == []
