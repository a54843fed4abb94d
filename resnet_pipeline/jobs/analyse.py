"""Everything that is computed from kept scores: statistics of networks, of pairs of them, and ensembles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.calibration import Calibration, calibrate
from resnet_pipeline.evaluation.confusion import class_errors, confusion_pairs, label_places
from resnet_pipeline.evaluation.ensemble import (
    Combine,
    average,
    errors_of,
    fit_weights,
    greedy_selection,
    halves,
    intervals_of,
    leave_one_out,
    rows_of,
)
from resnet_pipeline.evaluation.paper import ENSEMBLE_SOURCE, ENSEMBLE_TOP5
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.real_labels import RealLabels, agreement, real_error
from resnet_pipeline.evaluation.scores import Scores, check_same_samples, read_scores
from resnet_pipeline.evaluation.statistics import mcnemar
from resnet_pipeline.evaluation.submission import read_class_ids, write_submission
from resnet_pipeline.jobs.evaluate import Evaluation, evaluate_models
from resnet_pipeline.jobs.references import expanded
from resnet_pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Source:
    """Scores, of a file when they are asked for, or of an evaluation, which has them.

    ``row`` is what the evaluation says of them, empty for a file.
    """

    name: str
    read: Callable[[], Scores]
    row: Mapping[str, Any]
    evaluation: Evaluation | None = None


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Statistics as plain JSON values, and the calibrations that the reliability diagram shows."""

    values: dict[str, Any]
    calibrations: dict[str, Calibration]


def score_sources(workspace: Workspace, references: Sequence[str], test: TestSpec | None) -> list[Source]:
    """Return the scores of MODEL references and of score files (``….parquet``); missing ones are computed first.

    Score files alone need no ``test``; raises UserError for a MODEL without one.
    """
    references = expanded(references)
    models = [reference for reference in references if not reference.endswith(".parquet")]
    if models and test is None:
        raise UserError(f"{models[0]} is a model, so --dataset must say what to test it on")
    found: dict[str, Source] = {}
    if models and test is not None:
        for evaluation in evaluate_models(workspace, models, test):
            found[evaluation.reference] = _source(evaluation)
    for reference in references:
        if reference not in found:
            found[reference] = Source(name=reference, read=partial(read_scores, Path(reference)), row={})
    return [found[reference] for reference in dict.fromkeys(references)]


def evaluations_of(sources: Sequence[Source]) -> list[Evaluation]:
    """Return the evaluations that the sources come from; a score file has none."""
    return [source.evaluation for source in sources if source.evaluation is not None]


def analyse(
    sources: Sequence[Source],
    *,
    classes: Sequence[str] | None = None,
    real_labels: RealLabels | None = None,
    most: int = 10,
) -> Analysis:
    """Compute each network's errors with intervals, calibration, worst classes, confusions, and each pair's agreement.

    ``classes`` are names to show instead of numbers. Raises UserError if scores are of different samples or a label
    is not known.
    """
    scores = [source.read() for source in sources]
    check_same_samples(scores)

    def named(number: int) -> str:
        return classes[number] if classes else str(number)

    # each network by itself
    networks, calibrations, wrong = [], {}, []
    for source, own in zip(sources, scores, strict=True):
        per_class = class_errors(own.probabilities, own.labels)
        calibration = calibrations[source.name] = calibrate(own.probabilities, own.labels)
        wrong.append(label_places(own.probabilities, own.labels) >= 1)
        networks.append(
            {
                "model": source.name,
                **errors_of(own),
                **intervals_of(own),
                "calibration_error": calibration.error,
                "reliability": _reliability(calibration),
                "classes": [
                    {"class": named(i), "images": int(n), "top1": float(top1), "top5": float(top5)}
                    for i, (n, top1, top5) in enumerate(
                        zip(per_class.images, per_class.top1, per_class.top5, strict=True)
                    )
                    if n
                ],
                "confusions": [
                    {"class": named(c.label), "taken_for": named(c.predicted), "images": c.count}
                    for c in confusion_pairs(own.probabilities, own.labels, most=most)
                ],
                **({"real": real_error(own, real_labels)} if real_labels is not None else {}),
            }
        )
    # each pair: how far they agree, and McNemar's test
    pairs = [
        {
            "first": sources[i].name,
            "second": sources[j].name,
            "agreement": agreement(scores[i].probabilities, scores[j].probabilities),
            **vars(mcnemar(wrong[i], wrong[j])),
        }
        for i, j in itertools.combinations(range(len(sources)), 2)
    ]
    return Analysis(values={"models": networks, "pairs": pairs}, calibrations=calibrations)


def ensemble(
    sources: Sequence[Source],
    *,
    combine: Combine = "probabilities",
    fit: bool = False,
    greedy: bool = False,
    contributions: bool = False,
) -> dict[str, Any]:
    """Average the members and return their errors and the ensemble's, with intervals, as plain JSON values.

    Each source is read once: score files one after the other, unless one of the following needs them all. ``fit`` adds
    weights fitted on a random half and the errors on the other one; ``greedy`` the curve of greedy selection;
    ``contributions`` the errors without each member. Raises UserError if the scores are of different samples.
    """
    members: list[dict[str, Any]] = []
    scores: list[Scores] = []
    all_at_once = fit or greedy or contributions

    def reading() -> Any:
        for source in sources:
            own = source.read()
            members.append({"model": source.name, **_tested(own), **source.row})
            if all_at_once:
                scores.append(own)
            yield own
            del own  # before the next one is read

    # one pass over the sources: the members' errors, and their mean
    mean = average(reading(), combine=combine)
    ilsvrc = mean.probabilities.shape[1] == 1000
    result: dict[str, Any] = {
        "combine": combine,
        "members": members,
        "ensemble": _tested(mean),
        **({"paper": {"top5": ENSEMBLE_TOP5, "source": ENSEMBLE_SOURCE}} if ilsvrc else {}),
    }
    del mean
    # what needs all members at once
    if fit:
        result["fitted"] = _fitted(scores, combine)
    if greedy:
        steps = greedy_selection(scores, combine=combine)
        result["greedy"] = [{**vars(step), "member": sources[step.member].name} for step in steps]
    if contributions:
        without = leave_one_out(scores, combine=combine)
        result["without"] = [{"member": s.name, **errors} for s, errors in zip(sources, without, strict=True)]
    return result


def submit(workspace: Workspace, sources: Sequence[Source], dataset_name: str, ids: Path, output: Path) -> int:
    """Write the ILSVRC submission of the sources' mean; return its number of images."""
    dataset = open_dataset(workspace, dataset_name)
    class_ids = read_class_ids(ids, dataset.classes)
    mean = average(source.read() for source in sources)
    write_submission(mean, class_ids, output)
    return len(mean.keys)


def _source(evaluation: Evaluation) -> Source:
    scores = evaluation.scores
    row = {"seconds": scores.seconds, "scores": str(evaluation.path), "reused": evaluation.reused}
    return Source(name=evaluation.reference, read=lambda: scores, row=row, evaluation=evaluation)


def _tested(scores: Scores) -> dict[str, Any]:
    return {**errors_of(scores), **intervals_of(scores)} if scores.labelled else {"images": float(len(scores.keys))}


def _fitted(scores: Sequence[Scores], combine: Combine) -> dict[str, Any]:
    """Fit on one half, report on the other, beside equal weights on that same half."""
    fit, report = halves(len(scores[0].keys))
    weights = fit_weights([rows_of(own, fit) for own in scores], combine=combine)
    held = [rows_of(own, report) for own in scores]
    return {
        "weights": weights,
        "fitted_on": len(fit),
        "reported_on": len(report),
        "weighted": _tested(average(held, weights=weights, combine=combine)),
        "equal": _tested(average(held, combine=combine)),
    }


def _reliability(found: Calibration) -> list[dict[str, float]]:
    return [
        {
            "from": float(low),
            "to": float(high),
            "images": int(n),
            "confidence": float(confidence),
            "accuracy": float(accuracy),
        }
        for low, high, n, confidence, accuracy in zip(
            found.edges[:-1], found.edges[1:], found.images, found.confidence, found.accuracy, strict=True
        )
        if n
    ]
