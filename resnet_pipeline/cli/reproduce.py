"""``resnet-pipeline reproduce``: the paper's tables and figures, run, kept and shown on a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from flows.parameters import (
    Cifar10Name,
    ExhibitName,
    ImageNetName,
    KeptIn,
    MaxFailures,
    Mirror,
    Networks,
    Overrides,
    PageOnly,
    PlanOnly,
    Price,
    Registered,
    ScaleName,
    Seeds,
    Share,
    Steps,
    StudyLauncher,
    Workers,
)
from resnet_pipeline.cli.console import say
from resnet_pipeline.cli.options import Json, Root, write_result
from resnet_pipeline.progress import cost, price_an_hour, priced
from resnet_pipeline.records import plain
from resnet_pipeline.report.terminal import print_table
from resnet_pipeline.workspace import Workspace

if TYPE_CHECKING:
    from resnet_pipeline.jobs.study import PlannedRun


def reproduce(
    exhibit: ExhibitName,
    imagenet: ImageNetName = None,
    cifar10: Cifar10Name = None,
    scale: ScaleName = "full",
    steps: Steps = None,
    networks: Networks = None,
    seeds: Seeds = None,
    share: Share = None,
    overrides: Overrides = None,
    workers: Workers = None,
    launcher: StudyLauncher = "ray",
    max_failures: MaxFailures = 3,
    mirror: Mirror = None,
    registered: Registered = True,
    price: Price = None,
    kept_in: KeptIn = None,
    plan_only: PlanOnly = False,
    page_only: PageOnly = False,
    root: Root = None,
    json_file: Json = None,
) -> None:
    """Run a table or figure of the paper on staged datasets; after an interruption the same command goes on.

    What `train` and `evaluate` made before is reused. The same command in a second terminal takes the runs that the
    first one does not train yet.
    """
    from resnet_pipeline.jobs.keep_transfers import keep_transfers
    from resnet_pipeline.jobs.launch import Launch
    from resnet_pipeline.jobs.reproduce import kept_folder, page_of
    from resnet_pipeline.jobs.reproduce import reproduce as reproduced
    from resnet_pipeline.jobs.study import Study, plan

    workspace = Workspace.of(root)
    study = Study(
        exhibit=exhibit, imagenet=imagenet, cifar10=cifar10, scale=scale, steps=steps, networks=networks, seeds=seeds,
        share=share, overrides=overrides or {},
    )  # fmt: skip
    folder = kept_folder(workspace, Path(kept_in) if kept_in else None)
    if plan_only:
        rows = plan(workspace, study, folder)
        if rows:
            print_table(_table(rows))
        say(_total(rows, price))
        write_result(json_file, [plain(row) for row in rows])
        return
    if page_only:
        keep_transfers(workspace, folder)
        say(page_of(folder, price))
        return
    launch = Launch(launcher=launcher, workers=workers, max_failures=max_failures, mirror=mirror, price=price)
    found = reproduced(workspace, study, launch, registered=registered, output=folder)
    for name in found.elsewhere:
        say(f"{name} is trained by another process; the same command goes on with it when that has ended")
    say(f"{len(found.runs)} runs, {len(found.reused)} of them finished before; page: {found.page}")
    write_result(json_file, plain(found))


def _table(rows: Sequence[PlannedRun]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("run", "for", "state", "steps", "hours", "GB"):
        table.add_column(name, justify="right" if name in ("steps", "hours", "GB") else "left", overflow="fold")
    for row in rows:
        steps = f"{row.step:,}/{row.steps:,}" if row.step else f"{row.steps:,}"
        hours = "?" if row.hours is None else f"{row.hours:,.1f}"
        run = f"{row.recipe} seed {row.seed}"
        table.add_row(run, ", ".join(row.exhibits), row.state, steps, hours, f"{row.gigabytes:.2f}")
    return table


def _total(rows: Sequence[PlannedRun], price: float | None) -> str:
    """Return what is left of all runs in one line, and from which measurements the hours are known."""
    left = [row for row in rows if row.step < row.steps]
    known = [row.hours for row in left if row.hours is not None]
    with priced(price):
        money = cost(3600 * sum(known), price_an_hour())
    hours = (
        f"{sum(known):,.1f} hours on this machine{money}" if known else "hours not known: no run here has a pace yet"
    )
    without = f" and {len(left) - len(known)} runs of unknown pace" if known and len(known) < len(left) else ""
    steps = sum(row.steps - row.step for row in left)
    return (
        f"{len(rows)} runs, {len(rows) - len(left)} finished; left: {steps:,} steps, {hours}{without}; "
        f"{sum(row.gigabytes for row in rows):.2f} GB"
    )
