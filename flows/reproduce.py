"""reproduce: a table or figure of the paper, its runs one after another, kept and shown on a page."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import flow

from flows.artifacts import key_of, table
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
from flows.shell import form, logged, outcome, phase
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.reproduce import Reproduced, kept_folder, page_of
from resnet_pipeline.jobs.reproduce import reproduce as reproduced
from resnet_pipeline.jobs.study import Study, plan
from resnet_pipeline.records import JsonObject, plain_record
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


@phase("study", "study · {study.exhibit} · {study.scale}")
def run(study: Study, launch: Launch, folder: Path, *, registered: bool) -> Reproduced:
    """Train, test and measure what a study needs, and write the page; what is finished is reused."""
    return reproduced(Workspace.of(), study, launch, registered=registered, output=folder)


@phase("page", "page · {folder}")
def page(folder: Path, price: float | None) -> Path:
    """Write the page from what is kept."""
    return page_of(folder, price)


@flow(name="reproduce", flow_run_name="{exhibit} · {scale}")
@logged
@form
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
) -> JsonObject:
    """Run a table or figure of the paper on staged datasets, and keep the results; what is finished is reused.

    Started again with the same parameters, it goes on.
    """
    workspace = Workspace.of()
    study = Study(
        exhibit=exhibit, imagenet=imagenet, cifar10=cifar10, scale=scale, steps=steps, networks=networks, seeds=seeds,
        share=share, overrides=overrides or {},
    )  # fmt: skip
    folder = kept_folder(workspace, Path(kept_in) if kept_in else None)
    if plan_only:
        rows = [plain_record(row) for row in plan(workspace, study, folder)]
        table(key_of("plan", exhibit), rows, f"Runs of {exhibit}, {scale} scale: their states and what is left of them")
        return {"plan": rows}
    if page_only:
        return {"page": str(outcome(page(folder, price)))}
    launch = Launch(launcher=launcher, workers=workers, max_failures=max_failures, mirror=mirror, price=price)
    found = outcome(run(study, launch, folder, registered=registered))
    _log.info("%d runs, %d of them finished before; page: %s", len(found.runs), len(found.reused), found.page)
    return plain_record(found)
