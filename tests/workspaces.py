"""Workspaces as tests begin with them."""

from __future__ import annotations

import shutil
from pathlib import Path

from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace


def with_digits(root: Path, digits: Dataset) -> Workspace:
    """Return a workspace that has the digits, without a copy of them."""
    workspace = Workspace(root)
    Path(workspace.data).mkdir(parents=True, exist_ok=True)
    (Path(workspace.data) / "digits").symlink_to(digits.path)
    return workspace


def with_database(workspace: Workspace, file: Path) -> Workspace:
    """Return the workspace with a copy of an MLflow database: to make one anew takes a second."""
    workspace.mlflow.mkdir(parents=True)
    shutil.copy(file, workspace.mlflow / "mlflow.db")
    return workspace


def add_short_run(workspace: Workspace, digits: Dataset, name: str, *, steps: int) -> None:
    """Train digits/resnet8 for some steps, as the run ``runs/NAME``."""
    config = with_overrides(get_recipe("digits/resnet8"), {"steps": steps, "eval_every": steps, "bn_images": 128})
    run = RunDirectory.create(workspace.runs, config, digits.facts)
    train(run, digits, LocalContext())
    run.path.rename(workspace.runs / name)
