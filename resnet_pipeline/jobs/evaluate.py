"""The evaluation jobs: scores of any networks under a protocol, kept; errors and ensembles from the kept scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.adapters.datasets import open_dataset
from resnet_pipeline.adapters.mlflow_registry import fetch_model
from resnet_pipeline.adapters.mlflow_tracking import Tracking
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import average, errors_of
from resnet_pipeline.evaluation.evaluate import chosen_samples, evaluate
from resnet_pipeline.evaluation.members import Member, load_file, load_folder
from resnet_pipeline.evaluation.scores import Scores, read_scores, score_path, write_scores
from resnet_pipeline.evaluation.views import Protocol, protocol_of
from resnet_pipeline.jobs.progress import counting
from resnet_pipeline.training.context import local_device
from resnet_pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One network's errors under a protocol; ``reused`` if the scores were kept from before."""

    reference: str
    member: Member
    scores: Scores
    path: Path
    errors: dict[str, float]
    reused: bool


def load_member(workspace: Workspace, reference: str) -> Member:
    """Load the network of a MODEL reference.

    A reference is a run directory (a path, or its name under runs/), ``models:/…`` or ``runs:/…`` of MLflow, or
    ``NETWORK=WEIGHTS-FILE``. Raises UserError where it points nowhere.
    """
    if reference.startswith(("models:/", "runs:/")):
        return load_folder(fetch_model(Tracking(workspace), reference))
    for folder in (Path(reference), workspace.runs / reference):
        if folder.is_dir():
            return load_folder(folder)
    network, separator, file = reference.partition("=")
    if separator:
        return load_file(network, Path(file).expanduser())
    raise UserError(
        f"no model at {reference!r}: name a run directory, models:/NAME@ALIAS, runs:/ID or NETWORK=WEIGHTS-FILE"
    )


def evaluate_models(
    workspace: Workspace,
    references: Sequence[str],
    dataset_name: str,
    protocol_name: str,
    *,
    split: str | None = None,
    images: int | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> list[Evaluation]:
    """Evaluate networks under a protocol; only those whose scores are not kept are run, sharing the decoding.

    ``images`` limits the evaluation to that many evenly spaced images of the split.
    """
    dataset = open_dataset(workspace, dataset_name)
    split = split or dataset.eval_split
    if split not in dataset.splits:
        raise UserError(f"dataset {dataset.name!r} has no split {split!r}; it has {', '.join(dataset.splits)}")
    if images is not None and images < 1:
        raise UserError(f"images must be at least 1, not {images}")
    members = {reference: load_member(workspace, reference) for reference in dict.fromkeys(references)}
    paths, kept = {}, {}
    missing: dict[Protocol, dict[str, Member]] = {}
    for reference, member in members.items():
        protocol = protocol_of(protocol_name, member.views)
        subset = (
            protocol.id
            if images is None
            else f"{protocol.id}-{len(chosen_samples(len(dataset.splits[split]), images))}-images"
        )
        paths[reference] = score_path(
            workspace.scores,
            dataset_fingerprint=dataset.fingerprint,
            split=split,
            protocol=subset,
            weights_sha256=member.weights_sha256,
        )
        if paths[reference].exists():
            kept[reference] = read_scores(paths[reference])
        else:
            missing.setdefault(protocol, {})[reference] = member
    fresh: dict[str, Scores] = {}
    for protocol, group in missing.items():
        title = f"{protocol_name}: {', '.join(m.name for m in group.values())}"
        with counting(title, quiet=quiet, say=say) as update:
            fresh |= evaluate(
                {reference: member.classifier for reference, member in group.items()},
                dataset,
                protocol,
                split=split,
                images=images,
                device=local_device(),
                progress=update,
            )
    for reference, scores in fresh.items():
        write_scores(scores, paths[reference])
    if kept:
        say(f"{protocol_name}: scores of {', '.join(members[r].name for r in kept)} kept from before")
    return [
        Evaluation(
            reference=reference,
            member=members[reference],
            scores=(scores := kept.get(reference) or fresh[reference]),
            path=paths[reference],
            errors=errors_of(scores),
            reused=reference in kept,
        )
        for reference in members
    ]


def ensemble_errors(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Return the errors of the members' averaged probabilities, from their kept scores."""
    return errors_of(average([e.scores for e in evaluations]))
