"""evaluate and ensemble-evaluate: errors of any networks under the paper's protocols, alone and averaged."""

from __future__ import annotations

import logging
from typing import Any

from prefect import flow

from flows.parameters import (
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
    ProtocolName,
    RegisteredAs,
    Scales,
    ScoringWorkers,
    Split,
)
from flows.shell import form, logged, table
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.jobs.analyse import ensemble, evaluations_of, score_sources
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.jobs.register import check_registrable, register_ensemble_of
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


@flow(name="evaluate")
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
) -> list[dict[str, Any]]:
    """Test networks under one protocol; networks whose scores are kept are not run again."""
    test = TestSpec(
        dataset=dataset, protocol=protocol, split=split, images=images, scales=scales, average=average,
        workers=workers, half=half,
    )  # fmt: skip
    evaluations = evaluate_models(Workspace.of(), models, test)
    rows = [{"model": evaluation.reference, **evaluation.errors} for evaluation in evaluations]
    table(f"evaluation-{dataset}-{protocol}", rows, f"Errors on {dataset}, {protocol}, percent")
    return rows


@flow(name="ensemble-evaluate")
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
) -> dict[str, Any]:
    """Average the members' kept scores and report the ensemble's error; missing scores are computed first."""
    test = TestSpec(
        dataset=dataset, protocol=protocol, split=split, images=images, scales=scales, average=average, workers=workers
    ) if dataset else None  # fmt: skip
    check_registrable(registered_as, members, test, combine=combine)
    sources = score_sources(Workspace.of(), members, test)
    result = ensemble(sources, combine=combine, fit=fit_weights, greedy=greedy, contributions=contributions)
    tested = f"{dataset or 'score files'}, {protocol}"
    rows = [
        {"model": row["model"], "images": row["images"], "top1": row["top1"], "top5": row["top5"]}
        for row in [*result["members"], {"model": "ensemble", **result["ensemble"]}]
    ]
    table(f"ensemble-{tested}", rows, f"Errors on {tested}, percent")
    name, errors, paper = f"ensemble of {len(sources)}", result["ensemble"], result.get("paper")
    also = f" (the paper: top-5 {paper['top5']} %; {paper['source']}, not these images)" if paper else ""
    _log.info(
        "%s on %s: top-1 error %.2f %%, top-5 error %.2f %%%s", name, tested, errors["top1"], errors["top5"], also
    )
    version = None
    if registered_as and dataset:
        registered = register_ensemble_of(Workspace.of(), registered_as, evaluations_of(sources), dataset)
        _log.info("%s: %s", name, registered.describe())
        version = registered.uri
    more: dict[str, Any] = {key: result[key] for key in ("fitted", "greedy", "without") if key in result}
    return {"version": version, "members": rows[:-1], "ensemble": rows[-1], **more}
