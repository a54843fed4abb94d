"""The report job: finished runs of a dataset as a page and a table."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resnet_pipeline.adapters.mlflow.runs import Delivery, Tracking
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import Mean
from resnet_pipeline.evaluation.paper import PUBLISHED
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.scores import Scores
from resnet_pipeline.jobs.evaluate import Evaluation, evaluate_models, kept_scores
from resnet_pipeline.jobs.provenance import environment
from resnet_pipeline.jobs.recipes import network_cost
from resnet_pipeline.jobs.references import parse_run
from resnet_pipeline.jobs.register import Registration, measured_errors
from resnet_pipeline.jobs.repeat import commands, told_apart
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.models import depth_of
from resnet_pipeline.progress import price_an_hour
from resnet_pipeline.report.content import Curve, Ensemble, Member, ReportData
from resnet_pipeline.report.figures import error_figure, loss_figure
from resnet_pipeline.report.model_card import MeasuredErrors
from resnet_pipeline.report.page import write_report
from resnet_pipeline.training.metrics_log import Line, TrainEntry, ValidationEntry, entries_of, read_metrics
from resnet_pipeline.training.mirror import adopt_all, keep
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.usage import Usage
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

PAGE = "report.html"
"""The page of one run, in its directory."""

ScoresOf = Callable[[RunDirectory, str], Scores | None]
"""The scores of a run under a protocol; None if it was not tested under that."""


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
    scores = {
        (run.path, protocol): evaluation.scores
        for protocol, found in evaluations.items()
        for run, evaluation in zip(folders.values(), found, strict=True)
    }
    data = _report(workspace, dataset, list(folders.values()), protocols, lambda run, p: scores[run.path, p])
    return write_report(data, output or workspace.reports / f"{dataset_name}.html"), data


def report_on_training(
    workspace: Workspace, trained: TrainedRun, tests: Sequence[TestSpec], evaluations: Sequence[Evaluation]
) -> Path:
    """Write the page on a run that was just trained and tested, into its directory and its MLflow run; return its path.

    The dataset's page, ``reports/<dataset>.html``, is written anew with all finished runs on it and the scores that
    they have; nothing is tested for it. If two trainings end at once, the later page stays, whole.

    Example: ``report_on_training(Workspace.of(), trained, [test], evaluate_models(Workspace.of(), [path], test))``
    """
    run = trained.run
    dataset = open_dataset(workspace, run.dataset().name)
    of_protocol = {test.protocol: e.scores for test, e in zip(tests, evaluations, strict=True)}
    protocols = list(of_protocol)
    data = _report(workspace, dataset, [run], protocols, lambda _, protocol: of_protocol[protocol])
    page = write_report(data, run.path / PAGE)
    keep(run, page)
    Tracking(workspace).log_file(run, page, "report")
    if all(test.images is None for test in tests):  # else these errors are not to be compared with the others'
        specs = {test.protocol: test for test in tests}

        def kept(other: RunDirectory, protocol: str) -> Scores | None:
            return of_protocol[protocol] if other.path == run.path else kept_scores(workspace, other, specs[protocol])

        data = _report(workspace, dataset, _finished(workspace, dataset), protocols, kept)
        write_report(data, workspace.reports / f"{dataset.name}.html")
    return page


def curves_of(run: RunDirectory) -> dict[str, str]:
    """Return the figures of a finished run's errors and of its loss, as SVG.

    Example: ``curves_of(RunDirectory.open(path))["loss"]``
    """
    members = [_member(run, run.config().recipe, _Tested({run.path: {}}))]
    return {"error": error_figure(members), "loss": loss_figure(members)}


@dataclass
class _Tested:
    """What was found under the protocols: of each run, by its directory, and of all together."""

    members: dict[Path, dict[str, MeasuredErrors]] = field(default_factory=dict)
    images_per_second: dict[Path, float] = field(default_factory=dict)
    """Of the last protocol."""
    ensemble: dict[str, MeasuredErrors] = field(default_factory=dict)
    ensemble_images_per_second: float = 0.0


def _report(
    workspace: Workspace, dataset: Dataset, runs: Sequence[RunDirectory], protocols: Sequence[str], scores_of: ScoresOf
) -> ReportData:
    tested = _tested(dataset, runs, protocols, scores_of)
    names = told_apart([run.config() for run in runs])
    members = [_member(run, name, tested) for run, name in zip(runs, names, strict=True)]
    return ReportData(
        title=f"Residual networks on {dataset.name}" if len(runs) > 1 else f"{names[0]} on {dataset.name}",
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        classes=len(dataset.classes),
        samples={name: len(split) for name, split in dataset.splits.items()},
        refused=len(dataset.manifest.refused),
        members=members,
        ensemble=_ensemble(members, tested),
        environment=environment(),
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commands=commands(workspace, dataset, list(runs), names, protocols),
    )


def _tested(dataset: Dataset, runs: Sequence[RunDirectory], protocols: Sequence[str], scores_of: ScoresOf) -> _Tested:
    """Return the errors of the runs, and of the ensemble if all were tested; one run's scores are in memory."""
    found = _Tested({run.path: {} for run in runs})
    for protocol in protocols:
        mean, count = Mean(), 0
        for run in runs:
            scores = scores_of(run, protocol)
            if scores is None:
                continue
            found.members[run.path][protocol] = measured_errors(scores, len(dataset.splits[scores.split]))
            if protocol == protocols[-1]:
                found.images_per_second[run.path] = scores.images_per_second
            mean.add(scores)
            count += 1
        if count == len(runs) > 1:
            together = mean.scores()
            found.ensemble[protocol] = measured_errors(together, len(dataset.splits[together.split]))
            found.ensemble_images_per_second = together.images_per_second
    return found


def _finished(workspace: Workspace, dataset: Dataset) -> list[RunDirectory]:
    """Return the finished runs on a dataset; one whose files are damaged is left out, and named in the log."""
    adopt_all(workspace)
    found = []
    for file in sorted(workspace.runs.glob("*/result.json")):
        run = RunDirectory(file.parent)
        try:
            if run.dataset().fingerprint == dataset.fingerprint and run.result():
                found.append(run)
        except UserError as error:
            _log.warning("%s; the report leaves it out", error)
    return found


def _member(run: RunDirectory, name: str, tested: _Tested) -> Member:
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
        errors=tested.members[run.path],
        images_per_second=result.images_per_second,
        seconds=result.seconds,
        test_images_per_second=tested.images_per_second.get(run.path),
        train_loss=_curve(history, TrainEntry, "loss"),
        train_error=_curve(history, TrainEntry, "error"),
        val_error=_curve(history, ValidationEntry, "top1"),
        used=Usage.of(run.metrics_file).describe(price_an_hour()),
        registered=registration.version if registration else None,
        mlflow_run=Delivery.of(run).run_id or None,
        paper_error=published.top1 if published else None,
        paper_source=published.source if published else None,
    )


def _ensemble(members: Sequence[Member], tested: _Tested) -> Ensemble | None:
    if not tested.ensemble:
        return None
    return Ensemble(
        members=[m.name for m in members],
        errors=tested.ensemble,
        samples=next(iter(tested.ensemble.values())).images,
        test_images_per_second=tested.ensemble_images_per_second,
    )


def _curve(history: Sequence[Line], kind: type[TrainEntry | ValidationEntry], figure: str) -> Curve:
    found = [(step, entry.figures[figure]) for step, entry in entries_of(history, kind) if figure in entry.figures]
    return Curve(steps=[step for step, _ in found], values=[value for _, value in found])
