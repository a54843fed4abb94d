"""Where a result comes from: versions, hardware, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from resnet_pipeline import __version__


def environment() -> dict[str, str]:
    """Return the versions and hardware that a result depends on.

    Example: ``environment()["torch"]``
    """
    names = ("torch", "torchvision", "ray", "mlflow", "prefect")
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "resnet_pipeline": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "hardware": f"{hardware}, {os.cpu_count()} CPU cores",
    }


def git_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, ``-dirty`` if it has changes, or None."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
