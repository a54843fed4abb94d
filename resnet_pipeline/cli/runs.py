"""``resnet-pipeline runs``: what was trained under a root, what is being trained, and what can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_pipeline.cli.console import say
from resnet_pipeline.cli.options import Json, Root, write_result
from resnet_pipeline.records import plain
from resnet_pipeline.report.terminal import print_table
from resnet_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from resnet_pipeline.jobs.runs import RunRow


def runs(root: Root = None, json_file: Json = None) -> None:
    """List the runs: running, interrupted, finished, failed or damaged; and the commands that resume them."""
    from resnet_pipeline.jobs.runs import run_rows

    workspace = Workspace.of(root)
    rows = run_rows(workspace)
    if not rows:
        say(f"no runs under {workspace.runs}")
    else:
        print_table(_table(rows))
    for row in rows:
        if row.error:
            say(f"\n{row.run}: {row.error}")
        if row.resume:
            say(f"\n# {row.run}, from step {row.step}\n{row.resume}")
    write_result(json_file, [plain(row) for row in rows])


def _table(rows: Sequence[RunRow]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("recipe", "dataset", "seed", "step", "state", "run"):
        table.add_column(name, justify="right" if name in ("seed", "step") else "left", overflow="fold")
    for row in rows:
        steps = "" if row.steps is None else f"{row.step:,}/{row.steps:,}"
        seed = "" if row.seed is None else str(row.seed)
        table.add_row(row.recipe or "", row.dataset or "", seed, steps, row.state, row.run)
    return table
