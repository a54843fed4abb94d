"""The evaluation jobs: scores of any networks under a protocol, kept; errors and ensembles from the kept scores."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.data.order import Int64
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import Errors, Measured, average, errors_of
from resnet_pipeline.evaluation.protocols import Protocol, TestSpec, protocol_of
from resnet_pipeline.evaluation.scores import Parts, Scores, lacking_models, read_scores, score_path, write_scores
from resnet_pipeline.evaluation.scoring import Plan, check_models, chosen_samples, plan_chunks, score_chunks
from resnet_pipeline.evaluation.trained_model import Member, NetworkFacts
from resnet_pipeline.jobs.references import Reference, expanded, load, parse
from resnet_pipeline.models import Classifier
from resnet_pipeline.progress import Bar, priced, progress
from resnet_pipeline.records import INLINE
from resnet_pipeline.settings import surroundings
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.copies import Copies
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One network's errors under a protocol; ``reused`` if the scores were kept from before.

    ``reference`` is what the user wrote, ``parsed`` what it stands for, ``member`` what is known of it without its
    weights.
    """

    reference: str
    parsed: Reference
    member: NetworkFacts
    scores: Scores
    path: Path
    reused: bool

    @cached_property
    def errors(self) -> Errors:
        """Top-1 and top-5 error; UserError if the split's labels are not known."""
        return errors_of(self.scores)


@dataclass(frozen=True, kw_only=True)
class TestRow:
    """What ``evaluate --json`` says of a network; ``scores`` is its score file, ``seconds`` are what the test took."""

    __test__: ClassVar[bool] = False  # no test of pytest's

    model: str
    network: str
    weights_sha256: str
    split: str
    protocol: str
    tested: Measured = field(metadata=INLINE)
    seconds: float
    images_per_second: float
    scores: str
    reused: bool

    @classmethod
    def of(cls, evaluation: Evaluation) -> TestRow:
        """Return what machines are told of an evaluation."""
        scores = evaluation.scores
        return cls(
            model=evaluation.reference,
            network=evaluation.member.network,
            weights_sha256=evaluation.member.weights_sha256,
            split=scores.split,
            protocol=scores.protocol,
            tested=Measured.of(scores),
            seconds=round(scores.seconds, 3),
            images_per_second=round(scores.images_per_second, 2),
            scores=str(evaluation.path),
            reused=evaluation.reused,
        )


def evaluate_models(workspace: Workspace, references: Sequence[str], test: TestSpec) -> list[Evaluation]:
    """Test networks; only those whose scores are not kept are run, sharing the decoding.

    Networks are loaded one after the other, and only those that are run stay in memory. A score file that is kept is
    read once, a new one is written and not read; one that is damaged or of something else is computed again. A test
    that was killed resumes with the chunks that are missing.

    Example: ``evaluate_models(Workspace.of(), ["digits-resnet8"], TestSpec(dataset="digits", protocol="10-crop"))``
    """
    # the networks, and the samples that they are tested on
    dataset, split, indices = tested_samples(workspace, test)
    parsed = {
        text: parse(workspace, text)
        for text in dict.fromkeys(expanded(workspace, references, allow_partial=test.allow_partial))
    }
    # load one network after the other; keep those whose scores are missing, by their form of the protocol
    groups: dict[Protocol, dict[str, tuple[Member, Path]]] = {}
    known: dict[str, NetworkFacts] = {}
    paths: dict[str, Path] = {}
    kept: dict[Path, Scores] = {}
    for text, reference in parsed.items():
        member = load(workspace, reference)
        check_models({text: member.classifier}, dataset)
        protocol = protocol_of(test.protocol, member.views, scales=test.scales, average=test.average)
        path = score_path(
            workspace.scores,
            dataset_fingerprint=dataset.fingerprint,
            split=split,
            protocol=protocol.id if test.images is None else f"{protocol.id}-{len(indices)}-images",
            weights_sha256=member.weights_sha256,
        )
        if path not in paths.values():  # else the same weights under another name
            found = _kept(workspace, path, dataset.fingerprint, split, member.weights_sha256)
            if found is not None:
                kept[path] = found
            else:
                groups.setdefault(protocol, {})[text] = member, path
        known[text], paths[text] = member.facts(), path
        del member  # before the next one is loaded
    scores: dict[Path, Scores] = {}
    # run them, those of one form together
    for protocol, group in groups.items():
        plan = plan_chunks(dataset, split, protocol, indices)
        scores |= _compute(workspace, group, plan, test)
    # read the scores that are kept
    reused = [text for text, path in paths.items() if path in kept]
    if reused:
        names = ", ".join(known[text].name for text in reused)
        _log.info("%s: scores of %s kept from before", test.protocol, names)
    scores |= kept
    return [
        Evaluation(
            reference=text,
            parsed=parsed[text],
            member=known[text],
            scores=scores[path],
            path=path,
            reused=text in reused,
        )
        for text, path in paths.items()
    ]


def tested_samples(workspace: Workspace, test: TestSpec) -> tuple[Dataset, str, Int64]:
    """Return the dataset, split and sample numbers int64 [N] that a test is on; UserError if there is no such split.

    Example: ``tested_samples(Workspace.of(), TestSpec(dataset="digits", protocol="center"))``
    """
    dataset = open_dataset(workspace, test.dataset)
    split = test.split or dataset.eval_split
    if split not in dataset.splits:
        raise UserError(f"dataset {dataset.name!r} has no split {split!r}; it has {', '.join(dataset.splits)}")
    return dataset, split, chosen_samples(len(dataset.splits[split]), test.images)


def kept_scores(workspace: Workspace, run: RunDirectory, test: TestSpec) -> Scores | None:
    """Return the scores that are kept of a finished run under a test of all images; None if there are none.

    Example: ``kept_scores(Workspace.of(), run, TestSpec(dataset="digits", protocol="center"))``
    """
    dataset, result = open_dataset(workspace, test.dataset), run.result()
    if result is None:
        return None
    split = test.split or dataset.eval_split
    path = score_path(
        workspace.scores,
        dataset_fingerprint=dataset.fingerprint,
        split=split,
        protocol=protocol_of(test.protocol, run.config().views, scales=test.scales, average=test.average).id,
        weights_sha256=result.weights_sha256,
    )
    return _kept(workspace, path, dataset.fingerprint, split, result.weights_sha256)


def score_copies(workspace: Workspace) -> Copies:
    """Return what brings score files from where runs are kept for good, and sends them there.

    Example: ``score_copies(Workspace.of()).bring(path)``
    """
    return Copies(workspace.scores, storage_at(f"{workspace.home}/scores") if workspace.home else None)


def _kept(workspace: Workspace, path: Path, fingerprint: str, split: str, weights_sha256: str) -> Scores | None:
    """Return the scores that are kept in a file; None if there are none, or (which is said) they are damaged."""
    score_copies(workspace).bring(path)
    if not path.exists():
        return None
    try:
        scores = read_scores(path)
        if (scores.dataset_fingerprint, scores.split, scores.weights_sha256) != (fingerprint, split, weights_sha256):
            raise UserError(f"score file {path} is of other weights or another dataset")
    except UserError as error:
        _log.warning("%s: computed again", error)
        return None
    return scores


def ensemble_errors(evaluations: Sequence[Evaluation]) -> Errors:
    """Return the errors of the members' averaged probabilities, from their kept scores.

    Example: ``ensemble_errors(evaluate_models(Workspace.of(), references, test)).top5``
    """
    return errors_of(average([e.scores for e in evaluations]))


def _compute(
    workspace: Workspace, members: Mapping[str, tuple[Member, Path]], plan: Plan, test: TestSpec
) -> dict[Path, Scores]:
    """Compute the missing chunks of each member, then write its score file; return what was written, by file."""
    models = {reference: member.classifier for reference, (member, _) in members.items()}
    digests = {reference: member.weights_sha256 for reference, (member, _) in members.items()}
    copies, sizes = score_copies(workspace), [len(chunk) for chunk in plan.chunks]
    parts = {reference: Parts(path, sizes, copies) for reference, (_, path) in members.items()}
    lacking = lacking_models(parts)
    before = {reference: own.seconds for reference, own in parts.items()}
    took: float | None = None
    total = sum(len(plan.chunks[number]) for number in lacking)
    if len(lacking) < len(plan.chunks):
        _log.info("%s: resuming with %d of %d chunks", plan.protocol.name, len(lacking), len(plan.chunks))
    title = f"{test.protocol}: {', '.join(member.name for member, _ in members.values())}"
    with priced(test.price), progress(title, total=total) as bar:
        if lacking and on_ray(test.workers, len(plan.chunks)):
            from resnet_pipeline.adapters.ray.evaluate import score_on_ray

            took = score_on_ray(
                models, workspace, plan, parts=parts, lacking=lacking, digests=digests, workers=test.workers, bar=bar
            )
        else:
            _score_here(models, plan, parts, lacking, digests, bar)
    keys = plan.keys
    written = {}
    merged = {reference: own.merge(keys) for reference, own in parts.items()}
    if took is not None:
        merged = _as_one_evaluation(merged, before, took)
    for reference, (_, path) in members.items():
        scores = merged[reference]
        if test.half:
            scores = replace(scores, probabilities=scores.probabilities.astype(np.float16))
        write_scores(scores, path)
        copies.send(path)
        written[path] = scores
        parts[reference].remove()
    return written


def on_ray(workers: int | None, chunks: int) -> bool:
    """Return whether a test is Ray's work: on a cluster, with a number of workers, or on a machine of several GPUs.

    Else it is this process's, which has all of the machine that Ray's workers would share, and has begun when they were
    still starting. So it is of a single chunk on any one machine.
    """
    several_gpus = torch.cuda.device_count() > 1 and chunks > 1
    return surroundings().ray_address is not None or workers is not None or several_gpus


def _as_one_evaluation(scores: Mapping[str, Scores], before: Mapping[str, float], took: float) -> dict[str, Scores]:
    """Return scores that several workers made with the seconds of the evaluation, not of all workers together.

    The new chunks took ``took`` seconds, which the models share as they do the workers' seconds; ``before`` are the
    seconds of each model's chunks that were there already.
    """
    new = {name: own.seconds - before[name] for name, own in scores.items()}
    share = took / max(sum(new.values()), 1e-9)
    return {name: replace(own, seconds=before[name] + share * new[name]) for name, own in scores.items()}


def _score_here(
    models: Mapping[str, Classifier],
    plan: Plan,
    parts: Mapping[str, Parts],
    lacking: Mapping[int, Sequence[str]],
    digests: Mapping[str, str],
    bar: Bar,
) -> None:
    """Compute chunks in this process; those that the same models lack, one after the other in one call."""
    for names, group in itertools.groupby(lacking, key=lambda number: tuple(lacking[number])):
        numbers = list(group)
        scored = score_chunks(
            {name: models[name] for name in names},
            plan.only(numbers),
            device=local_device(),
            digests=digests,
            on_images=lambda images, before=bar.reached: bar.reach(before + images),  # type: ignore[misc]
        )
        for number, found in zip(numbers, scored, strict=True):
            for name in names:
                parts[name].keep(number, found[name])
