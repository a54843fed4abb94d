"""evaluate and ensemble-evaluate: errors of any networks under the paper's protocols, alone and averaged."""

from __future__ import annotations

import logging

from prefect import flow
from prefect.runtime import task_run

from flows.artifacts import error_row, even, key_of, paper_errors, table
from flows.parameters import (
    AllowPartial,
    Average,
    Combined,
    Contributions,
    DatasetName,
    FitWeights,
    Greedy,
    Half,
    Images,
    Members,
    Models,
    OptionalDataset,
    Price,
    ProtocolName,
    Refine,
    RegisteredAs,
    Scales,
    ScoringWorkers,
    Split,
    Voc,
)
from flows.shell import form, logged, outcome, phase
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.evaluation.ensemble import Combine, Measured
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.jobs.analyse import EnsembleResult, Source, ensemble, evaluations_of, score_sources
from resnet_pipeline.jobs.evaluate import Evaluation, evaluate_models
from resnet_pipeline.jobs.register import check_registrable, register_ensemble_of
from resnet_pipeline.jobs.tasks import all_detectors, check_no_detectors
from resnet_pipeline.records import JsonObject, plain_record
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

SECONDS_TO_REGISTER = 3600.0


def _tested_on() -> str:
    test: TestSpec | None = task_run.parameters["test"]
    return f"evaluate · {test.dataset} · {test.protocol}" if test else "evaluate · score files"


@phase("evaluate", _tested_on)
def score(models: list[str], test: TestSpec) -> list[Evaluation]:
    """Test networks; kept scores are reused."""
    return evaluate_models(Workspace.of(), models, test)


@phase("evaluate", _tested_on)
def score_members(members: list[str], test: TestSpec | None) -> list[Source]:
    """Return the members' scores; kept ones are reused."""
    return score_sources(Workspace.of(), members, test)


@phase("average", "average · {combine}")
def average_members(
    sources: list[Source], *, combine: Combine, fit: bool, greedy: bool, contributions: bool
) -> EnsembleResult:
    """Average the members' scores, and what else is asked of them."""
    return ensemble(sources, combine=combine, fit=fit, greedy=greedy, contributions=contributions)


@phase("register", "register · {name}", timeout=SECONDS_TO_REGISTER)
def register_average(name: str, sources: list[Source], test: TestSpec) -> str:
    """Register the ensemble with its errors; return the version's address."""
    registered = register_ensemble_of(Workspace.of(), name, evaluations_of(sources), test)
    _log.info("ensemble of %d: %s", len(sources), registered.describe())
    return registered.uri


@flow(name="evaluate", flow_run_name="{dataset} · {protocol}")
@logged
@form
def evaluate(
    models: Models,
    dataset: DatasetName,
    protocol: ProtocolName = "center",
    split: Split = None,
    scales: Scales = None,
    average: Average = "softmax",
    images: Images = None,
    workers: ScoringWorkers = None,
    half: Half = False,
    allow_partial: AllowPartial = False,
    price: Price = None,
    voc: Voc = None,
    refine: Refine = False,
) -> list[JsonObject]:
    """Test networks under one protocol; networks whose scores are kept are not run again.

    Detectors are tested on whole images, by their average precision.
    """
    test = TestSpec(
        dataset=dataset, protocol=protocol, split=split, images=images, scales=scales, average=average,
        workers=workers, half=half, allow_partial=allow_partial, price=price,
    )  # fmt: skip
    open_dataset(Workspace.of(), dataset)  # a wrong name is the flow's own error, before there is a task
    if all_detectors(Workspace.of(), models):
        from flows.boxes import tested_detectors
        from resnet_pipeline.jobs.detect import detection_test

        return tested_detectors(models, detection_test(test, voc=voc, refine=refine))
    check_no_detectors(voc=voc, refine=refine)
    evaluations = outcome(score(models, test))
    found = [(evaluation, Measured.of(evaluation.scores)) for evaluation in evaluations]
    rows = [error_row(e.reference, protocol, tested, recipe=e.member.recipe) for e, tested in found]
    table(key_of("evaluation", dataset, protocol), even(rows), f"Errors on {dataset}, {protocol}, percent")
    return [_row(e.reference, tested) for e, tested in found]


@flow(name="ensemble-evaluate", flow_run_name="{dataset} · {protocol}")
@logged
@form
def ensemble_evaluate(
    members: Members,
    dataset: OptionalDataset = None,
    protocol: ProtocolName = "10-crop",
    split: Split = None,
    scales: Scales = None,
    average: Average = "softmax",
    images: Images = None,
    combine: Combined = "probabilities",
    fit_weights: FitWeights = False,
    greedy: Greedy = False,
    contributions: Contributions = False,
    workers: ScoringWorkers = None,
    registered_as: RegisteredAs = None,
    allow_partial: AllowPartial = False,
    price: Price = None,
    voc: Voc = None,
    refine: Refine = False,
) -> JsonObject:
    """Average the members' kept scores and report the ensemble's error; missing scores are computed first.

    Detectors are tested together: on the union of their proposals, with their region classifiers averaged.
    """
    test = TestSpec(
        dataset=dataset, protocol=protocol, split=split, images=images, scales=scales, average=average, workers=workers,
        allow_partial=allow_partial, price=price,
    ) if dataset else None  # fmt: skip
    if dataset:
        open_dataset(Workspace.of(), dataset)
    if all_detectors(Workspace.of(), members):
        from flows.boxes import tested_detectors
        from resnet_pipeline.jobs.detect import detection_test

        on = detection_test(test, voc=voc, refine=refine, registered_as=registered_as)
        (row,) = tested_detectors(members, on, together=True)
        return {"version": None, "ensemble": row}
    check_no_detectors(voc=voc, refine=refine)
    check_registrable(registered_as, members, test, combine=combine)
    sources = outcome(score_members(members, test))
    result = outcome(
        average_members(sources, combine=combine, fit=fit_weights, greedy=greedy, contributions=contributions)
    )
    tested_on = f"{dataset or 'score files'}, {protocol}"
    name, errors, paper = f"ensemble of {len(sources)}", result.ensemble.errors, result.paper
    recipes = [source.evaluation.member.recipe if source.evaluation else None for source in sources]
    rows = [
        error_row(row.model, protocol, row.tested, recipe=recipe)
        for row, recipe in zip(result.members, recipes, strict=True)
    ]
    published = paper_errors(None, paper.top5, paper.source) if paper else {}
    rows.append(error_row(name, protocol, result.ensemble) | published)
    table(key_of("ensemble", tested_on), even(rows), f"Errors on {tested_on}, percent")
    found = f"top-1 error {errors.top1:.2f} %, top-5 error {errors.top5:.2f} %" if errors else "no labels, no errors"
    also = f" (the paper: top-5 {paper.top5} %; {paper.source}, not these images)" if paper else ""
    _log.info("%s on %s: %s%s", name, tested_on, found, also)
    version = None
    if registered_as and test:
        version = outcome(register_average(registered_as, sources, test))
    plain = plain_record(result)
    more: JsonObject = {key: plain[key] for key in ("fitted", "greedy", "without") if key in plain}
    members_rows = [_row(row.model, row.tested) for row in result.members]
    return {"version": version, "members": members_rows, "ensemble": _row("ensemble", result.ensemble), **more}


def _row(model: str, found: Measured) -> JsonObject:
    """Return what the flow returns of a network; images without labels have no errors."""
    errors = {"top1": found.errors.top1, "top5": found.errors.top5} if found.errors else {}
    return {"model": model, "images": found.images, **errors}
