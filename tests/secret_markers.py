"""A password that tests put into servers' addresses, and where it is found afterwards."""

from __future__ import annotations

from pathlib import Path

MARKER = "mArKeR-5a1t"
NOWHERE = f"http://user:{MARKER}@127.0.0.1:1"
"""An address with it, at which nothing answers."""

SERVERS = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "AWS_ENDPOINT_URL")
"""The variables whose addresses may hold one."""


def files_with_marker(folder: Path) -> list[str]:
    """Return the files below a folder that hold it."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()]
