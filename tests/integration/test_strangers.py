"""Who has no login is refused by each port that infra/ publishes: real servers, started by compose.yaml's commands."""

from __future__ import annotations

import base64
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.conftest import BINARIES, free_port

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

INFRA = Path(__file__).parents[2] / "infra"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
USER = "pipeline"
SECRET = "0123456789abcdef" * 3


@contextmanager
def service(
    name: str, port: int, folder: Path, settings: Mapping[str, str], *, listens: str = "127.0.0.1"
) -> Iterator[None]:
    """Run a service as Compose would: its command, environment and secrets; its port and databases are others."""
    published = SERVICES[name]["ports"][0].rpartition(":")[2]
    command = [str(word).replace("0.0.0.0", listens) for word in SERVICES[name]["command"]]
    command = [str(port) if word == published else word.replace(f"={published}", f"={port}") for word in command]
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
        yield
    finally:
        process.terminate()
        process.wait(60)


def answer(address: str, *, login: str = "", host: str = "") -> int:
    """Return the status of an answer; login is ``user:password``, host another name than the address's."""
    request = urllib.request.Request(address)
    if login:
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


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
