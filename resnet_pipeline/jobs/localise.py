"""ImageNet localisation: boxes of true classes, or of a classifier's five likeliest, by localisers and R-CNNs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.data.order import Int64
from resnet_pipeline.detection.localisation import Protocol
from resnet_pipeline.detection.trained_localiser import (
    BoxGiver,
    TwoStage,
    load_box_giver,
    load_localiser,
    load_regions,
)
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.statistics import error_interval
from resnet_pipeline.files import write_json
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.jobs.localiser_boxes import boxes_of_classes, localised_wrongly
from resnet_pipeline.jobs.references import RunFolder, folder_of, parse
from resnet_pipeline.records import plain
from resnet_pipeline.workspace import Workspace

G = TypeVar("G")

GUESSES = 5
"""Classes of an image that a classifier may name, each with a box (Russakovsky et al., 2015, section 4.2)."""


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """How many images of a split are localised wrongly, in percent, with its 95 % interval.

    ``classes`` says whose they are: "truth", or a classifier, which names five. ``run`` is the localiser's directory,
    of several with " + " between, or its registered name; ``rcnns`` are those of the R-CNNs that looked at the boxes
    again. ``test`` is the protocol of the result file, ``results``, which has the boxes.
    """

    run: str
    dataset: str
    split: str
    protocol: str
    classes: str
    images: int
    error: float
    interval: tuple[float, float]
    rcnns: tuple[str, ...] = ()
    test: str = ""
    results: str = ""


def localise(
    workspace: Workspace,
    references: str | Sequence[str],
    dataset_name: str,
    *,
    rcnns: Sequence[str] = (),
    split: str | None = None,
    protocol: Protocol = "dense",
    scales: tuple[int, ...] | None = None,
    classifier: str | None = None,
    workers: int | None = None,
) -> Localisation:
    """Test a localiser, with the true classes or with the five likeliest of a ``classifier``, whose scores are kept.

    Runs and registered models are taken. ``dense`` tests whole images at ``scales``, by default the recipe's. With
    ``rcnns`` the best boxes of each class are scored and regressed by these once more, and there may be several
    localisers, whose boxes are taken together; a registered R-CNN has its localiser. The boxes are kept in a result
    file, while they are found part by part, here or by ``workers`` of Ray (None as `TestSpec` has it). What is asked
    for by default (`kept_file`) is kept in the directory of the localiser's run, or of the first R-CNN's. Raises
    UserError if the references are none of these, or the dataset has no boxes or other classes.

    Example: ``localise(Workspace.of(), "run", "ilsvrc2012", classifier="imagenet-resnet101").error``
    """
    names = [references] if isinstance(references, str) else list(references)
    dataset = open_dataset(workspace, dataset_name)
    split = split or dataset.eval_split
    if split not in dataset.splits:
        raise UserError(f"dataset {dataset_name!r} has no split {split!r}; it has {', '.join(dataset.splits)}")
    giver = _giver(workspace, names, rcnns)
    giver.tested_as(protocol, scales)
    classes, digest = dataset.splits[split].labels[:, None].astype(np.int64), ""
    if classifier is not None:
        classes, digest = _likeliest(workspace, classifier, dataset, split)
    boxes, path, test = boxes_of_classes(
        workspace, giver, dataset, split, classes, classifier=digest, protocol=protocol, sides=scales, workers=workers
    )
    wrong = localised_wrongly(dataset, boxes)
    tested = parse(workspace, (list(rcnns) or names)[0])  # what keeps it, if it is a run
    found = Localisation(
        run=" + ".join(_named(workspace, names)),
        dataset=dataset_name,
        split=split,
        protocol=protocol,
        classes=classifier or "truth",
        images=len(wrong),
        error=100 * float(wrong.mean()),
        interval=error_interval(wrong),
        rcnns=tuple(_named(workspace, rcnns)),
        test=test,
        results=str(path),
    )
    if isinstance(tested, RunFolder) and scales is None and split == dataset.eval_split:
        weights = giver.others if isinstance(giver, TwoStage) else ()
        write_json(kept_file(tested.path, protocol, predicted=classifier is not None, members=weights), plain(found))
    return found


def kept_file(run: Path, protocol: Protocol, *, predicted: bool, members: Sequence[str] = ()) -> Path:
    """Return where a run's directory keeps its test on the evaluation split, with true or with predicted classes.

    ``members`` are the weights' SHA-256 of the other networks of an ensemble.

    >>> str(kept_file(Path("run"), "dense", predicted=True))
    'run/localisation/dense-predicted.json'
    """
    others = f"-with-{hashlib.sha256(' '.join(members).encode()).hexdigest()[:16]}" if members else ""
    return run / "localisation" / f"{protocol}{'-predicted' if predicted else ''}{others}.json"


def _giver(workspace: Workspace, names: Sequence[str], rcnns: Sequence[str]) -> BoxGiver:
    """Return what is tested: a localiser, a registered R-CNN with its own, or localisers and R-CNNs together."""

    def load(name: str, loader: Callable[[Path], G]) -> G:
        with folder_of(workspace, parse(workspace, name)) as folder:
            return loader(folder)

    if not rcnns:
        if len(names) > 1:
            raise UserError(f"{len(names)} localisers are tested together by an R-CNN alone: name it with --rcnn")
        return load(names[0], load_box_giver)
    return TwoStage.of([load(name, load_localiser) for name in names], [load(name, load_regions) for name in rcnns])


def _named(workspace: Workspace, names: Sequence[str]) -> list[str]:
    """Return the names, those of runs as their directories."""
    given = [parse(workspace, name) for name in names]
    return [str(each.path) if isinstance(each, RunFolder) else each.text for each in given]


def _likeliest(workspace: Workspace, classifier: str, dataset: Dataset, split: str) -> tuple[Int64, str]:
    """Return the five likeliest classes of each image of a split, int64 [N, 5], and the classifier's SHA-256."""
    (evaluation,) = evaluate_models(
        workspace, [classifier], TestSpec(dataset=dataset.name, protocol="center", split=split)
    )
    scores, samples = evaluation.scores, dataset.splits[split]
    rows = {key: row for row, key in enumerate(scores.keys)}
    probabilities = scores.probabilities[[rows[key] for key in samples.keys]]
    likeliest: Int64 = np.argsort(-probabilities, axis=1, kind="stable")[:, :GUESSES].astype(np.int64)
    return likeliest, evaluation.member.weights_sha256
