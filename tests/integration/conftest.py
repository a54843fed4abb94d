"""Real servers and real processes: what the integration tests share."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.workspace import Workspace
from tests.integration.nodes import SETTINGS, Nodes, nodes
from tests.launching import launch_program
from tests.workspaces import with_database, with_digits

BINARIES = Path(sys.executable).parent
OF_THE_TESTS = ("RESNET_PIPELINE_ROOT", "PREFECT_HOME")  # a user has none of them set


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    f"--{name}"
    for name in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "hide-scrollbars", "disable-dev-shm-usage",
    )
]  # fmt: skip


@pytest.fixture
def browser(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that starts a headless Chromium with options and an address."""
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(CHROMIUM)} is on this machine to look at the page with")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        profile = tmp_path / f"profile{len(list(tmp_path.iterdir()))}"
        return subprocess.run(
            [program, *OPTIONS, f"--user-data-dir={profile}", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )

    return run


@pytest.fixture(scope="session")
def ray_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Return a Ray cluster of two nodes with a CPU each."""
    with nodes(tmp_path_factory.mktemp("nodes"), 1) as found:
        yield found


@pytest.fixture
def cluster(ray_nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """Return that cluster, and let this process join it."""
    own = {"RAY_ADDRESS": ray_nodes.address, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8"}
    for name, value in {**SETTINGS, **own}.items():
        monkeypatch.setenv(name, value)
    return ray_nodes


@pytest.fixture(scope="session")
def new_workspace(digits: Dataset, mlflow_database: Path) -> Callable[[Path], Workspace]:
    """Return a function that makes a workspace in a folder, with the digits and an empty MLflow database."""

    def make(root: Path) -> Workspace:
        return with_database(with_digits(root, digits), mlflow_database)

    return make


@pytest.fixture
def workspace(tmp_path: Path, new_workspace: Callable[[Path], Workspace]) -> Workspace:
    """Return a new workspace that has the digits and an MLflow database."""
    return new_workspace(tmp_path / "work")


@pytest.fixture(scope="session")
def run_program() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a program of this environment and returns what it printed."""

    def run(
        *command: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 500
    ) -> subprocess.CompletedProcess[str]:
        base = {k: v for k, v in os.environ.items() if k not in OF_THE_TESTS}
        return subprocess.run(
            [str(BINARIES / command[0]), *command[1:]],
            cwd=cwd,
            env={**base, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def run_forked() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs ``resnet-pipeline ARGUMENTS`` as `run_program` does, but for its start.

    Its process is forked from one that has made the imports, which are most of what these commands take.
    """

    def run(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        base = {k: v for k, v in os.environ.items() if k not in OF_THE_TESTS}
        (process,) = launch_program(arguments, cwd=cwd, environment={**base, **(env or {})})
        output = process.errors(500)
        return subprocess.CompletedProcess(["resnet-pipeline", *arguments], process.returncode or 0, output)

    return run
