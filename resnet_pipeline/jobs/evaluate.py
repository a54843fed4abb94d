"""The evaluation jobs: scores of any networks under a protocol, kept; errors and ensembles from the kept scores."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from resnet_pipeline.adapters.mlflow.registry import fetch_members, fetched_model
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.data.order import Int64
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import average, errors_of
from resnet_pipeline.evaluation.paper import ENSEMBLES
from resnet_pipeline.evaluation.protocols import Protocol, protocol_of
from resnet_pipeline.evaluation.published_weights import REFERENCE_SOURCES, load_reference
from resnet_pipeline.evaluation.scores import Parts, Scores, lacking_models, read_scores, score_path, write_scores
from resnet_pipeline.evaluation.scoring import check_models, chosen_samples, plan_chunks, score_chunks
from resnet_pipeline.evaluation.trained_model import Member, load_file, load_folder
from resnet_pipeline.models import Classifier
from resnet_pipeline.report.progress import counting
from resnet_pipeline.settings import surroundings
from resnet_pipeline.workspace import Workspace

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One network's errors under a protocol; ``reused`` if the scores were kept from before.

    Errors of a split whose labels are not known hold the number of images alone.
    """

    reference: str
    member: Member
    scores: Scores
    path: Path
    errors: dict[str, float]
    reused: bool


def load_member(workspace: Workspace, reference: str) -> Member:
    """Load the network of a MODEL reference.

    A reference is a run directory (a path, or its name under runs/), ``models:/…`` or ``runs:/…`` of MLflow, the name
    of a registered model, alone or with an alias (``imagenet-resnet50@champion``), a run id, ``NETWORK=WEIGHTS-FILE``,
    or ``torchvision:NAME`` or ``timm:NAME``. Raises UserError where it points nowhere.
    """
    if reference.startswith(REFERENCE_SOURCES):
        return load_reference(reference)
    for folder in (Path(reference), workspace.runs / reference):
        if folder.is_dir():
            return load_folder(folder)
    network, separator, file = reference.partition("=")
    if separator:
        return load_file(network, Path(file).expanduser())
    if address := _registered(reference):
        try:
            with fetched_model(Tracking(workspace), address) as folder:
                return load_folder(folder)
        except UserError as error:
            if str(error).startswith(reference):
                raise  # names it already
            what = reference if address == reference else f"{reference}: no run directory of that name"
            raise UserError(f"{what}: {error}") from None
    raise UserError(
        f"no model at {reference!r}: name a run directory, models:/NAME@ALIAS, runs:/ID, NETWORK=WEIGHTS-FILE, "
        "torchvision:NAME or timm:NAME"
    )


def load_members(workspace: Workspace, reference: str) -> list[Member]:
    """Load the network of a MODEL reference, or all members where it names a registered ensemble."""
    address = mlflow_address(workspace, reference)
    return fetch_members(Tracking(workspace), address) if address else [load_member(workspace, reference)]


def mlflow_address(workspace: Workspace, reference: str) -> str | None:
    """Return ``models:/…`` or ``runs:/…`` for a MODEL reference that stands for it; None for all others."""
    elsewhere = reference.startswith(REFERENCE_SOURCES) or "=" in reference or reference in ENSEMBLES
    folders = (Path(reference), workspace.runs / reference)
    return None if elsewhere or any(folder.is_dir() for folder in folders) else _registered(reference)


def expanded(references: Sequence[str]) -> list[str]:
    """Return the references with the names of ensembles replaced by their members."""
    return [member for reference in references for member in ENSEMBLES.get(reference, (reference,))]


def evaluate_models(
    workspace: Workspace,
    references: Sequence[str],
    dataset_name: str,
    protocol_name: str,
    *,
    split: str | None = None,
    images: int | None = None,
    scales: Sequence[int] | None = None,
    average: str = "softmax",
    workers: int | None = None,
    half: bool = False,
    quiet: bool = False,
    say: Say = print,
) -> list[Evaluation]:
    """Evaluate networks under a protocol; only those whose scores are not kept are run, sharing the decoding.

    ``scales`` are the shorter sides instead of each network's own; ``average`` is softmax or logits, over the views;
    ``images`` limits the evaluation to that many evenly spaced images of the split; ``half`` keeps scores as float16.
    ``workers`` is the number of tasks on Ray at a time; without it the cluster that RAY_ADDRESS names is used in full,
    and where there is none, this process. An evaluation that was killed goes on with the chunks that are missing.
    """
    dataset = open_dataset(workspace, dataset_name)
    split = split or dataset.eval_split
    if split not in dataset.splits:
        raise UserError(f"dataset {dataset.name!r} has no split {split!r}; it has {', '.join(dataset.splits)}")
    if images is not None and images < 1:
        raise UserError(f"images must be at least 1, not {images}")
    members = {reference: load_member(workspace, reference) for reference in dict.fromkeys(expanded(references))}
    check_models({name: member.classifier for name, member in members.items()}, dataset)
    indices = chosen_samples(len(dataset.splits[split]), images)
    groups: dict[Protocol, list[str]] = {}
    paths, reused = {}, []
    for reference, member in members.items():
        protocol = protocol_of(protocol_name, member.views, scales=scales, average=average)
        subset = protocol.id if images is None else f"{protocol.id}-{len(indices)}-images"
        paths[reference] = score_path(
            workspace.scores,
            dataset_fingerprint=dataset.fingerprint,
            split=split,
            protocol=subset,
            weights_sha256=member.weights_sha256,
        )
        if paths[reference].exists():
            reused.append(reference)
        elif list(paths.values()).count(paths[reference]) == 1:  # else the same weights under another name
            groups.setdefault(protocol, []).append(reference)
    for protocol, group in groups.items():
        own = {reference: (members[reference], paths[reference]) for reference in group}
        with counting(f"{protocol_name}: {', '.join(members[r].name for r in group)}", quiet=quiet, say=say) as update:
            _compute(
                workspace, own, dataset, split, protocol, indices, workers=workers, half=half, update=update, say=say
            )
    if reused:
        say(f"{protocol_name}: scores of {', '.join(members[r].name for r in reused)} kept from before")
    return [
        Evaluation(
            reference=reference,
            member=member,
            scores=(scores := read_scores(paths[reference])),
            path=paths[reference],
            errors=errors_of(scores) if scores.labelled else {"images": float(len(scores.keys))},
            reused=reference in reused,
        )
        for reference, member in members.items()
    ]


def ensemble_errors(evaluations: Sequence[Evaluation]) -> dict[str, float]:
    """Return the errors of the members' averaged probabilities, from their kept scores."""
    return errors_of(average([e.scores for e in evaluations]))


def _compute(
    workspace: Workspace,
    members: Mapping[str, tuple[Member, Path]],
    dataset: Dataset,
    split: str,
    protocol: Protocol,
    indices: Int64,
    *,
    workers: int | None,
    half: bool,
    update: Callable[[int, int], None],
    say: Say,
) -> None:
    """Compute the missing chunks of each member, then write its score file."""
    chunks = plan_chunks(dataset, split, protocol, indices)
    models = {reference: member.classifier for reference, (member, _) in members.items()}
    parts = {reference: Parts(path, [len(chunk) for chunk in chunks]) for reference, (_, path) in members.items()}
    lacking = lacking_models(parts)
    total = sum(len(chunks[number]) for number in lacking)
    if len(lacking) < len(chunks):
        say(f"{protocol.name}: going on with {len(lacking)} of {len(chunks)} chunks")
    if lacking and (workers is not None or surroundings().ray_address):
        from resnet_pipeline.adapters.ray.evaluate import score_on_ray

        score_on_ray(
            models, workspace, dataset.storage.url, protocol, split=split, chunks=chunks, parts=parts, lacking=lacking,
            workers=workers, progress=lambda done: update(done, total),
        )  # fmt: skip
    else:
        _score_here(models, dataset, split, protocol, chunks, parts, lacking, lambda done: update(done, total))
    keys = [dataset.splits[split].keys[i] for i in indices]
    for reference, (_, path) in members.items():
        scores = parts[reference].merge(keys)
        if half:
            scores = replace(scores, probabilities=scores.probabilities.astype(np.float16))
        write_scores(scores, path)
        parts[reference].remove()


def _score_here(
    models: Mapping[str, Classifier],
    dataset: Dataset,
    split: str,
    protocol: Protocol,
    chunks: Sequence[Int64],
    parts: Mapping[str, Parts],
    lacking: Mapping[int, Sequence[str]],
    progress: Callable[[int], None],
) -> None:
    """Compute chunks in this process; those that the same models lack, one after the other in one go."""
    done = 0
    for names, group in itertools.groupby(lacking, key=lambda number: tuple(lacking[number])):
        numbers = list(group)
        scored = score_chunks(
            {name: models[name] for name in names},
            dataset,
            protocol,
            split=split,
            chunks=[chunks[number] for number in numbers],
            device=local_device(),
            progress=lambda seen, _, before=done: progress(before + seen),  # type: ignore[misc]
        )
        for number, found in zip(numbers, scored, strict=True):
            for name in names:
                parts[name].write(number, found[name])
            done += len(chunks[number])


def _registered(reference: str) -> str | None:
    """Return the MLflow address of a registered model's name, an alias of it, or a run id; None for anything else."""
    if reference.startswith(("models:/", "runs:/")):
        return reference
    if re.fullmatch(r"[0-9a-f]{32}", reference):
        return f"runs:/{reference}"
    if re.fullmatch(r"[\w.-]+@[\w.-]+", reference):
        return f"models:/{reference}"
    return f"models:/{reference}@candidate" if re.fullmatch(r"[\w.-]+", reference) else None
