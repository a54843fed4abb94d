"""evaluate and ensemble-evaluate: errors of any networks under the paper's protocols, alone and averaged."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.parameters import (
    Average,
    Combined,
    DatasetName,
    EvaluationImages,
    EvaluationWorkers,
    ModelReference,
    ProtocolName,
    RegisteredAs,
    Scales,
    documented,
)
from flows.shell import logged, say, table
from resnet_pipeline.evaluation.paper import ENSEMBLES
from resnet_pipeline.jobs.analyse import ensemble, evaluations_of, score_sources
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.jobs.register import check_registrable, register_ensemble_of
from resnet_pipeline.workspace import Workspace

Members = Annotated[list[ModelReference], Field(min_length=1, description="The networks, by reference.")]


@flow(name="evaluate")
@logged
@documented
def evaluate(
    models: Members,
    dataset: DatasetName = "ilsvrc2012",
    protocol: ProtocolName = "10-crop",
    images: EvaluationImages = None,
    scales: Scales = None,
    average: Average = "softmax",
    workers: EvaluationWorkers = None,
) -> list[dict[str, Any]]:
    """Test networks under one protocol; networks whose scores are kept are not run again."""
    evaluations = evaluate_models(
        Workspace.of(), models, dataset, protocol,
        images=images, scales=scales, average=average, workers=workers, say=say(),
    )  # fmt: skip
    rows = [{"model": evaluation.reference, **evaluation.errors} for evaluation in evaluations]
    table(f"evaluation-{dataset}-{protocol}", rows, f"Errors on {dataset}, {protocol}, percent")
    return rows


@flow(name="ensemble-evaluate")
@logged
@documented
def ensemble_evaluate(
    members: Members = list(ENSEMBLES["ilsvrc2015"]),  # noqa: B006 - shown in the form, never changed
    dataset: DatasetName = "ilsvrc2012",
    protocol: ProtocolName = "multi-scale",
    images: EvaluationImages = None,
    scales: Scales = None,
    average: Average = "softmax",
    combine: Combined = "probabilities",
    workers: EvaluationWorkers = None,
    registered_as: RegisteredAs = None,
) -> dict[str, Any]:
    """Average the members' kept scores and report the ensemble's error; missing scores are computed first."""
    tell = say()
    check_registrable(registered_as, members, dataset, combine=combine, average=average)
    sources = score_sources(
        Workspace.of(), members, dataset, protocol,
        images=images, scales=scales, average=average, workers=workers, say=tell,
    )  # fmt: skip
    result = ensemble(sources, combine=combine, contributions=len(sources) > 1)
    rows = [
        {"model": row["model"], "images": row["images"], "top1": row["top1"], "top5": row["top5"]}
        for row in [*result["members"], {"model": "ensemble", **result["ensemble"]}]
    ]
    table(f"ensemble-{dataset}-{protocol}", rows, f"Errors on {dataset}, {protocol}, percent")
    errors = result["ensemble"]
    paper = result.get("paper")
    tell(
        f"ensemble of {len(sources)} on {dataset}, {protocol}: top-1 error {errors['top1']:.2f} %, "
        f"top-5 error {errors['top5']:.2f} %"
        + (f" (the paper: top-5 {paper['top5']} %; {paper['source']}, not these images)" if paper else "")
    )
    version = None
    if registered_as:
        version = register_ensemble_of(Workspace.of(), registered_as, evaluations_of(sources), dataset, say=tell).uri
    return {"version": version, "members": rows[:-1], "ensemble": rows[-1], "without": result.get("without")}
