"""evaluate and ensemble-evaluate: errors of any networks under the paper's protocols, alone and averaged."""

from __future__ import annotations

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
from flows.shell import form, logged, say, table
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.jobs.analyse import ensemble, evaluations_of, score_sources
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.jobs.register import check_registrable, register_ensemble_of
from resnet_pipeline.workspace import Workspace


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
    evaluations = evaluate_models(Workspace.of(), models, test, say=say())
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
    tell = say()
    test = TestSpec(
        dataset=dataset, protocol=protocol, split=split, images=images, scales=scales, average=average, workers=workers
    ) if dataset else None  # fmt: skip
    check_registrable(registered_as, members, test, combine=combine)
    sources = score_sources(Workspace.of(), members, test, say=tell)
    result = ensemble(sources, combine=combine, fit=fit_weights, greedy=greedy, contributions=contributions)
    tested = f"{dataset or 'score files'}, {protocol}"
    rows = [
        {"model": row["model"], "images": row["images"], "top1": row["top1"], "top5": row["top5"]}
        for row in [*result["members"], {"model": "ensemble", **result["ensemble"]}]
    ]
    table(f"ensemble-{tested}", rows, f"Errors on {tested}, percent")
    errors = result["ensemble"]
    paper = result.get("paper")
    tell(
        f"ensemble of {len(sources)} on {tested}: top-1 error {errors['top1']:.2f} %, "
        f"top-5 error {errors['top5']:.2f} %"
        + (f" (the paper: top-5 {paper['top5']} %; {paper['source']}, not these images)" if paper else "")
    )
    version = None
    if registered_as and dataset:
        version = register_ensemble_of(Workspace.of(), registered_as, evaluations_of(sources), dataset, say=tell).uri
    more: dict[str, Any] = {key: result[key] for key in ("fitted", "greedy", "without") if key in result}
    return {"version": version, "members": rows[:-1], "ensemble": rows[-1], **more}
