"""Where a result comes from: versions, hardware, commit."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from resnet_pipeline import __version__
from resnet_pipeline.config import RunConfig
from resnet_pipeline.config_io import assignment
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.initial_weights import InitialWeights
from resnet_pipeline.parallel import cores
from resnet_pipeline.recipes import changes_of
from resnet_pipeline.settings import settings
from resnet_pipeline.training.result import RunResult
from resnet_pipeline.training.run_directory import RunDirectory


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
        "hardware": f"{hardware}, {cores()} CPU cores",
    }


def git_commit() -> str | None:
    """Return the commit of the checkout that the package runs from, ``-dirty`` if it has changes.

    Of an installed package it is what its image says of itself (the setting ``revision``), or None.
    """
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
        return settings().revision
    return found.stdout.strip() or None


def start_tags(run: RunDirectory, dataset: Dataset, counts: Sequence[int] = ()) -> dict[str, str]:
    """Return what is known of a run before its first step: recipe, data, code, environment, hardware, workers."""
    return {
        "run": run.name,
        "recipe": run.config().recipe,
        "changes": _changes(run.config()),
        **({"initial_weights": initial.describe()} if (initial := InitialWeights.read(run)) else {}),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "git_commit": git_commit() or "not a git checkout",
        **({"workers": " or ".join(map(str, counts))} if counts else {}),
        **environment(),
    }


def _changes(config: RunConfig) -> str:
    """Return what a config changes of its recipe, as ``--set`` takes it; it may be of no recipe at all."""
    try:
        return " ".join(assignment(*change) for change in changes_of(config).items()) or "none"
    except UserError:
        return "of no known recipe"


def result_tags(result: RunResult) -> dict[str, str]:
    """Return what a finished run is told apart by: its weights, and what they were computed on and in."""
    return {
        "weights_sha256": result.weights_sha256,
        "device": result.device,
        **({"precision": result.precision} if result.precision else {}),  # older results have none
        "workers": str(result.workers),
    }
