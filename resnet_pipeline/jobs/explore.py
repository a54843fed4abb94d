"""The explorer job: a network's mistakes on a dataset as one HTML page."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resnet_pipeline.data.dataset import Dataset, Split, open_dataset
from resnet_pipeline.evaluation.calibration import calibrate
from resnet_pipeline.evaluation.confusion import Int64, class_errors, confusion_pairs, top_classes
from resnet_pipeline.evaluation.ensemble import average
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.scores import Scores
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.jobs.references import fully_expanded
from resnet_pipeline.jobs.register import measured_errors
from resnet_pipeline.report.explorer import (
    ClassName,
    ClassRow,
    ExplorerData,
    Guess,
    Mistake,
    Pair,
    thumbnail,
    write_explorer,
)
from resnet_pipeline.workspace import Workspace

_GUESSES, _PAIRS, _THUMBNAILS_PER_PAIR = 3, 12, 4


def explore(
    workspace: Workspace,
    references: Sequence[str],
    test: TestSpec,
    *,
    mistakes: int = 48,
    output: Path | None = None,
) -> Path:
    """Write the page on a network, or on the average of several; scores that are missing are computed first.

    Returns its path, reports/errors-<dataset>-<model>-<protocol>.html under the root by default. Raises UserError as
    ``evaluate_models`` does.

    Example: ``explore(Workspace.of(), ["digits-resnet8"], TestSpec(dataset="digits", protocol="center"))``
    """
    dataset = open_dataset(workspace, test.dataset)
    members = fully_expanded(workspace, references)
    evaluations = evaluate_models(workspace, members, test)
    scores = average([e.scores for e in evaluations])
    names = [e.member.name for e in evaluations]
    title = f"Errors of {names[0] if len(names) == 1 else f'an ensemble of {len(names)}'} on {dataset.name}"
    data = explorer_data(dataset, scores, title=title, models=names, mistakes=mistakes)
    model = "".join(c if c.isalnum() or c in "-." else "-" for c in references[0] if len(references) == 1) or "ensemble"
    return write_explorer(
        data, output or workspace.reports / f"errors-{dataset.name}-{model.strip('-')[-80:]}-{test.protocol}.html"
    )


def explorer_data(
    dataset: Dataset, scores: Scores, *, title: str, models: Sequence[str], mistakes: int = 48
) -> ExplorerData:
    """Put together what the page shows of scores on a split of a dataset; UserError if it has no labels."""
    samples = dataset.splits[scores.split]
    number = {key: index for index, key in enumerate(samples.keys)}
    rows = np.array([number[key] for key in scores.keys], dtype=np.int64)
    names = [ClassName(name, words) for name, words in zip(dataset.classes, dataset.facts.words, strict=True)]
    best = top_classes(scores.probabilities, _GUESSES)
    return ExplorerData(
        title=title,
        models=list(models),
        dataset_name=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
        created=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        measured=measured_errors(scores, len(samples)),
        calibration=calibrate(scores.probabilities, scores.labels),
        mistakes=_mistakes(samples, rows, scores, best, names, mistakes),
        wrong=int(np.count_nonzero(best[:, 0] != scores.labels)),
        pairs=_pairs(samples, rows, scores, best, names),
        classes=_classes(scores, names),
    )


def _mistakes(
    samples: Split, rows: Int64, scores: Scores, best: Int64, names: Sequence[ClassName], most: int
) -> list[Mistake]:
    """Return the worst mistakes, worst first: the answer's probability is the most above the label's."""
    every = np.arange(len(rows))
    of_label, of_answer = scores.probabilities[every, scores.labels], scores.probabilities[every, best[:, 0]]
    wrong = np.flatnonzero(best[:, 0] != scores.labels)
    worst = wrong[np.argsort((of_label - of_answer)[wrong], kind="stable")][:most]
    return [
        Mistake(
            key=scores.keys[row],
            thumbnail=thumbnail(samples.encoded(int(rows[row])).tobytes()),
            label=names[scores.labels[row]],
            label_probability=float(of_label[row]),
            guesses=[
                Guess(
                    name=names[k], probability=float(scores.probabilities[row, k]), right=bool(k == scores.labels[row])
                )
                for k in best[row]
            ],
        )
        for row in worst
    ]


def _pairs(samples: Split, rows: Int64, scores: Scores, best: Int64, names: Sequence[ClassName]) -> list[Pair]:
    images = np.bincount(scores.labels, minlength=len(names))
    pairs = []
    for found in confusion_pairs(scores.probabilities, scores.labels, most=_PAIRS):
        shown = np.flatnonzero((scores.labels == found.label) & (best[:, 0] == found.predicted))[:_THUMBNAILS_PER_PAIR]
        pairs.append(
            Pair(
                label=names[found.label],
                predicted=names[found.predicted],
                count=found.count,
                images=int(images[found.label]),
                thumbnails=[(scores.keys[i], thumbnail(samples.encoded(int(rows[i])).tobytes())) for i in shown],
            )
        )
    return pairs


def _classes(scores: Scores, names: Sequence[ClassName]) -> list[ClassRow]:
    """Return a row for each class that has images, worst first, then in the classes' order."""
    errors = class_errors(scores.probabilities, scores.labels)
    most: dict[int, tuple[int, int]] = {}
    for pair in confusion_pairs(scores.probabilities, scores.labels, most=len(scores.labels)):
        most.setdefault(pair.label, (pair.predicted, pair.count))  # the most frequent comes first
    rows = [
        ClassRow(
            name=name,
            images=int(errors.images[k]),
            top1=float(errors.top1[k]),
            top5=float(errors.top5[k]),
            taken_for=names[most[k][0]] if k in most else None,
            times=most[k][1] if k in most else 0,
        )
        for k, name in enumerate(names)
        if errors.images[k]
    ]
    return sorted(rows, key=lambda row: -row.top1)
