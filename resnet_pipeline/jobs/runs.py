"""The runs under a root: how far each is, in which state, and the command that resumes one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.repeat import resuming
from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.training.metrics_log import last_step
from resnet_pipeline.training.mirror import adopt_all
from resnet_pipeline.training.run_directory import RunDirectory, RunState
from resnet_pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A run in one line.

    ``step`` of ``steps`` is the newest checkpoint's, and the newest figures' while it runs. ``error`` says what ended
    or damaged it, ``resume`` is the command that goes on with it; None if there is nothing to say or to go on with.
    What a damaged config would say is None.
    """

    run: str
    path: str
    state: RunState
    recipe: str | None = None
    dataset: str | None = None
    seed: int | None = None
    step: int = 0
    steps: int | None = None
    error: str | None = None
    resume: str | None = None


def run_rows(workspace: Workspace) -> list[RunRow]:
    """Return a row per run, those that were written to last at the end.

    Example: ``[row.run for row in run_rows(Workspace.of()) if row.state == "interrupted"]``
    """
    adopt_all(workspace)
    folders = [path.parent for path in workspace.runs.glob("*/config.json")]
    return [_row(workspace, RunDirectory.of(workspace, path.name)) for path in sorted(folders, key=_written)]


def _row(workspace: Workspace, run: RunDirectory) -> RunRow:
    state, error = run.state()
    try:
        config, dataset = run.config(), run.dataset()
    except UserError:
        return RunRow(run=run.name, path=run.address, state=state, error=error)
    saved = max(checkpoint_steps(run.checkpoints), default=0)
    step = {"finished": config.steps, "running": max(saved, last_step(run.metrics_file))}.get(state, saved)
    return RunRow(
        run=run.name,
        path=run.address,
        state=state,
        recipe=config.recipe,
        dataset=dataset.name,
        seed=config.seed,
        step=step,
        steps=config.steps,
        error=error,
        resume=resuming(workspace, config, dataset.name) if state in ("interrupted", "failed") else None,
    )


def _written(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.glob("*.json*")), default=0.0)
