"""The report job: finished runs of a dataset as a page and a table."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from resnet_pipeline.adapters.mlflow.runs import Delivery
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import average
from resnet_pipeline.evaluation.paper import PUBLISHED
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.jobs.evaluate import Evaluation, ensemble_errors, evaluate_models
from resnet_pipeline.jobs.provenance import environment
from resnet_pipeline.jobs.recipes import network_cost
from resnet_pipeline.jobs.references import parse_run
from resnet_pipeline.jobs.register import Registration
from resnet_pipeline.jobs.repeat import commands, told_apart
from resnet_pipeline.models import depth_of
from resnet_pipeline.report.content import Curve, Ensemble, Member, ReportData
from resnet_pipeline.report.page import write_report
from resnet_pipeline.training.metrics_log import Line, TrainEntry, ValidationEntry, entries_of, read_metrics
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace


def report_on_runs(
    workspace: Workspace,
    dataset_name: str,
    *,
    runs: Sequence[str] | None,
    protocols: Sequence[str],
    output: Path | None = None,
) -> tuple[Path, ReportData]:
    """Write the HTML report on finished runs (None: all on this dataset); return its path and what it shows.

    Scores that are missing are computed first. Raises UserError for what is no run directory, and if there is none.

    Example: ``report_on_runs(Workspace.of(), "digits", runs=None, protocols=["center"])[0]``
    """
    dataset = open_dataset(workspace, dataset_name)
    # the runs that are shown
    if runs:
        folders = {text: RunDirectory.open(parse_run(workspace, text).path) for text in runs}
    else:
        folders = {str(run.path): run for run in _finished(workspace, dataset)}
    references = list(folders)
    if not references:
        raise UserError(f"no finished run on dataset {dataset_name!r} under {workspace.runs}; train one first")
    # their scores under each protocol
    tests = {protocol: TestSpec(dataset=dataset_name, protocol=protocol) for protocol in protocols}
    evaluations = {protocol: evaluate_models(workspace, references, test) for protocol, test in tests.items()}
    names = told_apart([run.config() for run in folders.values()])
    members = [
        _member(run, names[i], {protocol: e[i] for protocol, e in evaluations.items()})
        for i, run in enumerate(folders.values())
    ]
    # the page
    data = ReportData(
        title=f"Residual networks on {dataset_name}",
        dataset_name=dataset_name,
        dataset_fingerprint=dataset.fingerprint,
        classes=len(dataset.classes),
        samples={name: len(split) for name, split in dataset.splits.items()},
        refused=len(dataset.manifest.refused),
        members=members,
        ensemble=_ensemble(members, evaluations),
        environment=environment(),
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commands=commands(workspace, dataset, list(folders.values()), names, protocols),
    )
    return write_report(data, output or workspace.reports / f"{dataset_name}.html"), data


def _finished(workspace: Workspace, dataset: Dataset) -> list[RunDirectory]:
    found = [RunDirectory.open(p.parent) for p in sorted(workspace.runs.glob("*/result.json"))]
    return [run for run in found if run.dataset().fingerprint == dataset.fingerprint]


def _member(run: RunDirectory, name: str, evaluations: dict[str, Evaluation]) -> Member:
    config, result = run.config(), run.result()
    if result is None:
        raise UserError(f"run {run.name} is not finished; train it to its end before reporting on it")
    history = read_metrics(run.metrics_file)
    cost = network_cost(config, classes=len(run.dataset().classes))
    published, registration = PUBLISHED.get(config.recipe), Registration.of(run)
    return Member(
        name=name,
        run=run.name,
        depth=depth_of(config.model.name),
        parameters=cost.parameters,
        multiply_adds=cost.multiply_adds,
        errors={p: (e.errors.top1, e.errors.top5) for p, e in evaluations.items()},
        images_per_second=result.images_per_second,
        seconds=result.seconds,
        test_images_per_second=list(evaluations.values())[-1].scores.images_per_second,
        train_loss=_curve(history, TrainEntry, "loss"),
        train_error=_curve(history, TrainEntry, "error"),
        val_error=_curve(history, ValidationEntry, "top1"),
        registered=registration.version if registration else None,
        mlflow_run=Delivery.of(run).run_id or None,
        paper_error=published.top1 if published else None,
        paper_source=published.source if published else None,
    )


def _ensemble(members: Sequence[Member], evaluations: dict[str, list[Evaluation]]) -> Ensemble | None:
    if len(members) < 2:
        return None
    errors = {protocol: ensemble_errors(e) for protocol, e in evaluations.items()}
    first = next(iter(errors.values()))
    return Ensemble(
        members=[m.name for m in members],
        errors={protocol: (e.top1, e.top5) for protocol, e in errors.items()},
        samples=first.images,
        test_images_per_second=average([e.scores for e in list(evaluations.values())[-1]]).images_per_second,
    )


def _curve(history: Sequence[Line], kind: type[TrainEntry | ValidationEntry], figure: str) -> Curve:
    found = [(step, entry.figures[figure]) for step, entry in entries_of(history, kind) if figure in entry.figures]
    return Curve(steps=[step for step, _ in found], values=[value for _, value in found])
