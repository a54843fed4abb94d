"""A PostgreSQL server of the tests' own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import free_port


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs, which Debian keeps out of PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return found[-1].parent if found else Path(shutil.which("initdb") or "").parent if shutil.which("initdb") else None


@contextmanager
def server() -> Iterator[dict[str, str]]:
    """Yield the variables that name a server with the databases prefect and mlflow."""
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed")
    # not in pytest's folders, which each session of pytest's takes from all but their owner
    with tempfile.TemporaryDirectory(prefix="postgres-", dir="/tmp") as data:
        yield from _started(folder, Path(data))


def _started(folder: Path, data: Path) -> Iterator[dict[str, str]]:
    as_user = _as_user()
    if as_user:
        os.chown(data, as_user["user"], as_user["group"])
    (data / "password").write_text("secret-of-the-test")
    (data / "password").chmod(0o644)
    (data / "log").touch()
    (data / "log").chmod(0o666)
    run = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", **as_user}
    subprocess.run(
        [folder / "initdb", "-D", data / "db", "-U", "pipeline", "-A", "scram-sha-256", f"--pwfile={data}/password"],
        **run,
    )
    port = free_port()
    start = [folder / "pg_ctl", "-D", data / "db", "-w", "-l", data / "log", "-o", f"-p {port} -k {data} -c fsync=off"]
    subprocess.run([*start, "start"], **run)
    variables = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": "pipeline", "PGPASSWORD": "secret-of-the-test"}
    variables["PGDATA"] = str(data / "db")
    variables["PATH"] = f"{folder}:{os.environ['PATH']}"
    try:
        for database in ("prefect", "mlflow"):
            sql(variables, "postgres", f"CREATE DATABASE {database}")
        yield variables
    finally:
        subprocess.run([folder / "pg_ctl", "-D", data / "db", "-m", "immediate", "stop"], **run)


def restart(variables: dict[str, str]) -> None:
    """Cut all connections off, as a crash does, and start the server again."""
    subprocess.run(
        ["pg_ctl", "-w", "-m", "immediate", "restart"], env=variables, check=True, cwd="/",
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **_as_user(),
    )  # fmt: skip


def _as_user() -> dict[str, int]:
    if os.geteuid():
        return {}
    user = pwd.getpwnam("postgres")  # PostgreSQL refuses root
    return {"user": user.pw_uid, "group": user.pw_gid}


def sql(variables: dict[str, str], database: str, text: str) -> str:
    done = subprocess.run(
        ["psql", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", f"--command={text}", database],
        env=variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()
