"""Who has no login is refused by each port that infra/ publishes: real servers, started by compose.yaml's commands."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from resnet_pipeline.services.prefect_api import prefect_client
from tests.integration.conftest import BINARIES, free_port

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

INFRA = Path(__file__).parents[2] / "infra"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
DRAWN = {
    name
    for panel in json.loads((INFRA / "metrics/dashboard.json").read_text())["panels"]
    for target in panel["targets"]
    for name in re.findall(r"\b(?:ray|mlflow|prefect)_[a-z_]+", target["expr"])
}
OF_MLFLOW, OF_PREFECT = ({name for name in DRAWN if name.startswith(whose)} for whose in ("mlflow_", "prefect_"))
USER = "pipeline"
SECRET = "0123456789abcdef" * 3


@contextmanager
def service(
    name: str,
    port: int,
    folder: Path,
    settings: Mapping[str, str],
    options: Sequence[str] = (),
    *,
    listens: str = "127.0.0.1",
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service as Compose would: its command, environment and secrets; its port and databases are others."""
    published = SERVICES[name]["ports"][0].rpartition(":")[2]
    command = [str(word).replace("0.0.0.0", listens) for word in SERVICES[name]["command"]]
    command = [str(port) if word == published else word.replace(f"={published}", f"={port}") for word in command]
    command += options
    secrets = folder / "secrets"
    secrets.mkdir()
    for secret in SERVICES[name]["secrets"]:
        inside = secret if isinstance(secret, str) else secret["target"]
        (secrets / inside).write_text(f"{USER}:{SECRET}" if inside.endswith("AUTH_STRING") else SECRET)
    own = {key: value for key, value in SERVICES[name]["environment"].items() if "$" not in str(value)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [INFRA / "with-secrets.sh", BINARIES / command[0], *command[1:]],
            env={**os.environ, **own, **settings, "SECRETS_FOLDER": str(secrets), "PATH": f"{BINARIES}:/usr/bin:/bin"},
            cwd=folder, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def asked(address: str, *, login: str = "", host: str = "") -> urllib.request.Request:
    request = urllib.request.Request(address)
    if ":" in login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    elif login:
        request.add_header("Authorization", f"Bearer {login}")
    if host:
        request.add_header("Host", host)
    return request


def answer(address: str, *, login: str = "", host: str = "") -> int:
    """Return the status of an answer; login is ``user:password`` or a token, host another name than the address's."""
    try:
        with urllib.request.urlopen(asked(address, login=login, host=host), timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def metrics(address: str) -> set[str]:
    """Return the names that Prometheus would find."""
    with urllib.request.urlopen(asked(address, login=f"{USER}:{SECRET}"), timeout=60) as response:
        return set(re.findall(r"^(?:# TYPE )?(\w+)", response.read().decode(), re.MULTILINE))


def wait_for(address: str, folder: Path) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            assert answer(address) == 200
            return
        except OSError:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.5)


def test_mlflow_lets_nobody_in_without_the_password_and_under_another_name(tmp_path: Path) -> None:
    port = free_port()
    login = (INFRA / "mlflow-auth.ini").read_text()
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    (tmp_path / "auth.ini").write_text(login.replace("postgresql+psycopg2://pipeline@postgres/mlflow", database))
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
    }
    with service("mlflow", port, tmp_path, settings):
        server = f"http://127.0.0.1:{port}"
        wait_for(f"{server}/health", tmp_path)
        experiments = "/api/2.0/mlflow/experiments/search?max_results=1"
        for path in (experiments, "/api/2.0/mlflow-artifacts/artifacts", "/version", "/graphql", "/"):
            assert answer(server + path) == 401, path
            assert answer(server + path, login=f"{USER}:wrong") == 401, path
        assert answer(server + experiments, login=f"{USER}:{SECRET}") == 200
        assert answer(f"{server}/metrics") == 401
        assert metrics(f"{server}/metrics") >= OF_MLFLOW
        assert answer(server + experiments, login=f"{USER}:{SECRET}", host="elsewhere.example") == 403


def test_prefect_s_api_lets_nobody_in_without_the_password(tmp_path: Path) -> None:
    port = free_port()
    settings = {
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}",
    }
    with service("prefect-server", port, tmp_path, settings):
        server = f"http://127.0.0.1:{port}"
        wait_for(f"{server}/api/health", tmp_path)
        for path in ("/api/admin/version", "/api/admin/settings", "/api/csrf-token?client=x", "/api/docs"):
            assert answer(server + path) == 401, path
            assert answer(server + path, login=f"{USER}:wrong") == 401, path
            assert answer(server + path, host="elsewhere.example") == 401, path
        assert answer(f"{server}/api/admin/version", login=f"{USER}:{SECRET}") == 200
        assert answer(f"{server}/api/metrics") == 401
        assert metrics(f"{server}/api/metrics") >= OF_PREFECT
        # and the program, `deploy` for one, with it
        with (
            temporary_settings({PREFECT_API_AUTH_STRING: f"{USER}:{SECRET}"}),
            prefect_client(f"{server}/api") as client,
        ):
            assert client.read_work_pools() == []


INSIDE = """
import logging, sys, ray
from resnet_pipeline.adapters.ray.gauges import Gauges
from resnet_pipeline.logs import at_step, configured, log_context
from resnet_pipeline.training.metrics_log import Pace

ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")

@ray.remote(num_cpus=0)
def work():
    with configured(), log_context(run="digits-1", rank=3):
        at_step(7)
        logging.getLogger("resnet_pipeline.training").info("as a worker")

ray.get(work.remote())
Gauges("digits-1").show(7, Pace(images_per_second=5, data_wait=0.25, step_p50=1, step_p95=2, step_max=3))
print("in", flush=True)
sys.stdin.read()
"""


def test_ray_lets_nobody_in_without_the_token_and_its_workers_lines_are_json(tmp_path: Path) -> None:
    """The head, with the log of the worker's service: that of a task reaches the container's stderr."""
    gcs, dashboard, agent, export, client = (free_port() for _ in range(5))
    has_dashboard = importlib.util.find_spec("aiohttp_cors") is not None  # of ray[default], which the image has
    settings = {key: str(value) for key, value in SERVICES["ray-worker"]["environment"].items()}
    options = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    options += [f"--metrics-export-port={export}", "--object-store-memory=100000000"]
    if has_dashboard:
        options.append(f"--ray-client-server-port={client}")  # its package comes with ray[default]
    with service("ray-head", dashboard, tmp_path, settings, options) as head:
        address = joined(head, tmp_path)

        def inside(token: str, mode: str = "token") -> subprocess.Popen[str]:
            login = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token, "PYTHONPATH": str(Path(__file__).parents[2])}
            return subprocess.Popen(
                [sys.executable, "-c", INSIDE, address], env={**os.environ, **login},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip

        strangers = [inside(""), inside("", "disabled"), inside("wrong")]
        for stranger in strangers:
            printed, errors = stranger.communicate(timeout=120)
            assert "in" not in printed and "AuthenticationError" in errors, errors
        with inside(SECRET) as user:
            assert user.stdout and user.stdout.readline() == "in\n"
            lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line[:1] == "{"]
            (line,) = (line for line in lines if line.get("message") == "as a worker")
            assert (line["run"], line["rank"], line["step"]) == ("digits-1", 3, 7)
            if has_dashboard:
                dashboard_refuses(f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{agent}")
                gauges_of_ray(f"http://127.0.0.1:{export}/metrics")
            user.communicate("")
    if not has_dashboard:
        pytest.skip("GCS refused; ray[default], with the dashboard, is not installed")


def joined(head: subprocess.Popen[bytes], folder: Path) -> str:
    """Wait for the head, and return its address."""
    deadline = time.monotonic() + 120
    while not (found := re.search(r"--address='([^']+)'", (folder / "log").read_text())):
        assert head.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.2)
    return found[1]


def dashboard_refuses(server: str, agent: str) -> None:
    wait_for(f"{server}/api/gcs_healthz", Path())
    for path in ("/api/cluster_status", "/api/jobs/", "/nodes?view=summary", "/api/v0/logs", "/api/prometheus/sd"):
        assert answer(server + path) == 401, path
        assert answer(server + path, login="wrong") == 403, path
        assert answer(server + path, host="elsewhere.example") == 401, path
    assert answer(f"{server}/api/jobs/", login=SECRET) == 200
    assert answer(f"{agent}/api/job_agent/jobs/") == 401


def gauges_of_ray(address: str) -> None:
    deadline = time.monotonic() + 120
    expected = {name for name in DRAWN if name.startswith("ray_") and not re.search("_gpus_|_gram_", name)}
    while expected - (found := metrics(address)):
        assert time.monotonic() < deadline, expected - found
        time.sleep(1)
