"""evaluate and ensemble-evaluate: errors of any networks under the paper's protocols, alone and averaged."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.parameters import DatasetName, EvaluationImages, ModelReference, ProtocolName, documented
from flows.shell import say, table
from resnet_pipeline.evaluation.published import ENSEMBLE_SOURCE, ENSEMBLE_TOP5
from resnet_pipeline.jobs.evaluate import Evaluation, ensemble_errors, evaluate_models
from resnet_pipeline.workspace import Workspace

# The paper names neither the six models nor their order, only that two have 152 layers (docs/DEVIATIONS.md).
ILSVRC2015_MEMBERS = [
    "models:/imagenet-resnet34-b@candidate",
    "models:/imagenet-resnet34-c@candidate",
    "models:/imagenet-resnet50@candidate",
    "models:/imagenet-resnet101@candidate",
    "models:/imagenet-resnet152/1",
    "models:/imagenet-resnet152/2",
]

Members = Annotated[list[ModelReference], Field(min_length=1, description="The networks, by reference.")]


@flow(name="evaluate")
@documented
def evaluate(
    models: Members,
    dataset: DatasetName = "ilsvrc2012",
    protocol: ProtocolName = "10-crop",
    images: EvaluationImages = None,
) -> list[dict[str, Any]]:
    """Test networks under one protocol; networks whose scores are kept are not run again."""
    evaluations = evaluate_models(Workspace.of(), models, dataset, protocol, images=images, say=say())
    rows = [_row(evaluation) for evaluation in evaluations]
    table(f"evaluation-{dataset}-{protocol}", rows, f"Errors on {dataset}, {protocol}, percent")
    return rows


@flow(name="ensemble-evaluate")
@documented
def ensemble_evaluate(
    members: Members = ILSVRC2015_MEMBERS,
    dataset: DatasetName = "ilsvrc2012",
    protocol: ProtocolName = "multi-scale",
    images: EvaluationImages = None,
) -> dict[str, Any]:
    """Average the members' kept scores and report the ensemble's error; missing scores are computed first."""
    tell = say()
    evaluations = evaluate_models(Workspace.of(), members, dataset, protocol, images=images, say=tell)
    errors = ensemble_errors(evaluations)
    rows = [*(_row(e) for e in evaluations), {"model": "ensemble", **errors}]
    table(f"ensemble-{dataset}-{protocol}", rows, f"Errors on {dataset}, {protocol}, percent")
    ilsvrc = evaluations[0].scores.probabilities.shape[1] == 1000
    beside = f" (the paper: top-5 {ENSEMBLE_TOP5} %; {ENSEMBLE_SOURCE})" if ilsvrc else ""
    tell(
        f"ensemble of {len(evaluations)} on {dataset}, {protocol}: top-1 error {errors['top1']:.2f} %, "
        f"top-5 error {errors['top5']:.2f} %{beside}"
    )
    return {"members": rows[:-1], "ensemble": errors}


def _row(evaluation: Evaluation) -> dict[str, Any]:
    return {"model": evaluation.reference, **evaluation.errors}
