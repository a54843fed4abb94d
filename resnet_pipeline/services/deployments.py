"""Prefect's deployments: each flow of prefect.yaml registered with a server, under a work pool."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import resources

from resnet_pipeline.errors import UserError
from resnet_pipeline.settings import surroundings

POOL = "local"
"""The work pool of this machine's own worker."""


def deploy(pool: str) -> int:
    """Register every deployment of prefect.yaml with the server of PREFECT_API_URL; return how many there are.

    Example: ``deploy("local")``
    """
    if not surroundings().prefect_api_url:
        raise UserError("PREFECT_API_URL is not set: name the Prefect server's API, or use `resnet-pipeline up`")
    import yaml

    with resources.as_file(resources.files("flows") / "prefect.yaml") as file:
        count = len(yaml.safe_load(file.read_text())["deployments"])
        environment = {**os.environ, "RESNET_PIPELINE_POOL": pool}
        _prefect(environment, "work-pool", "create", pool, "--type", "process", "--overwrite")
        _prefect(environment, "--no-prompt", "deploy", "--all", "--pool", pool, "--prefect-file", str(file))
    return count


def _prefect(environment: dict[str, str], *arguments: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "prefect", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if process.returncode:
        lines = [line for line in (process.stdout + process.stderr).splitlines() if line.strip()]
        raise UserError(f"`prefect {' '.join(arguments)}` failed: {' '.join(lines[-3:])}")
