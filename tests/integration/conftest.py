"""Real servers and real processes: what the integration tests share."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.workspace import Workspace
from tests.workspaces import with_digits

BINARIES = Path(sys.executable).parent


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a new MLflow database, which takes seconds to make: for workspaces to start with."""
    from resnet_pipeline.adapters.mlflow.client import make_database

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    make_database(file)
    return file


@pytest.fixture(scope="session")
def new_workspace(digits: Dataset, mlflow_database: Path) -> Callable[[Path], Workspace]:
    """Return a function that makes a workspace in a folder, with the digits and an empty MLflow database."""

    def make(root: Path) -> Workspace:
        space = with_digits(root, digits)
        space.mlflow.mkdir(parents=True)
        shutil.copy(mlflow_database, space.mlflow / "mlflow.db")
        return space

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
        own = ("RESNET_PIPELINE_ROOT", "PREFECT_HOME")
        base = {k: v for k, v in os.environ.items() if k not in own}
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
