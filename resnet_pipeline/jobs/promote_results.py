"""The gate before a champion among detectors and localisers: better by more than chance on the same images.

Both are compared by their result files: detectors by the average precision of their boxes, localisers by their error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.adapters.mlflow.registry import (
    CHAMPION,
    ModelVersion,
    alias_of,
    fetch_scores,
    resolve,
    task_of_version,
)
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.config import TaskName
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.detection.metrics import coco_metrics, paired_difference
from resnet_pipeline.detection.results import Results, read_results
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.promotion import CHANCE, Comparison, compare_wrong
from resnet_pipeline.evaluation.statistics import p_text
from resnet_pipeline.jobs.detect import results_path
from resnet_pipeline.jobs.localiser_boxes import localised_wrongly
from resnet_pipeline.jobs.promote import Promotion, let_through, promotion_of, refused
from resnet_pipeline.jobs.references import parse_registered
from resnet_pipeline.workspace import Workspace

SAMPLES = 1_000
"""Samples of the images that the difference's interval is from."""


def promote_by_results(workspace: Workspace, reference: str) -> Promotion:
    """Give a registered detector or localiser the alias ``champion`` if it is better than the champion beyond chance.

    A detector is if the whole 95 % interval of the difference in COCO's average precision, over samples of the images
    of both, lies above 0; a localiser if its localisation error is lower by McNemar's exact test. A first champion
    needs only its result file. Raises PromotionRefusedError with the reason.

    Example: ``promote_by_results(Workspace.of(), "scenes-maskrcnn-resnet8-c4").reason``
    """
    tracking = Tracking(workspace)
    version = resolve(tracking, parse_registered(workspace, reference).uri)
    champion = alias_of(tracking, version.name, CHAMPION)
    if champion and champion.version == version.version:
        return promotion_of(tracking, version, champion, None, "champion already")
    kind = _KINDS[task_of_version(version)]
    dataset = _dataset(workspace, version)
    own = _results(workspace, tracking, version, version, dataset)
    if champion is None:
        reason = f"first champion, {kind.alone(dataset, own)} on {len(own.found):,} images"
        return let_through(tracking, promotion_of(tracking, version, None, None, reason))
    for tag, what in (("dataset_fingerprint", "dataset"), ("split", "split")):
        if version.tags.get(tag) != champion.tags.get(tag):
            raise refused(version, [f"it was tested on another {what} than champion version {champion.version}"])
    theirs = _results(workspace, tracking, version, champion, dataset)
    found = kind.against(dataset, own, theirs)
    by, (low, high) = found.by, found.interval
    text = (
        f"{found.figure} {found.own:.2f} % against {found.theirs:.2f} % of version {champion.version} on the same "
        f"{len(own.found):,} images: {'better' if by >= 0 else 'worse'} by {abs(by):.2f} points (95 % interval of the "
        f"difference {low:.2f} to {high:.2f}{found.test})"
    )
    if not found.better:
        raise refused(version, [f"{text}; better by more than chance ({found.chance}) is needed"])
    return let_through(tracking, promotion_of(tracking, version, champion, found.comparison, text))


@dataclass(frozen=True, kw_only=True)
class _Difference:
    """By how much the ``figure`` of one is better than that of another, in points; ``chance`` is what it must pass."""

    figure: str
    own: float
    theirs: float
    by: float
    interval: tuple[float, float]
    better: bool
    test: str
    chance: str
    comparison: Comparison | None = None


@dataclass(frozen=True)
class _Kind:
    """How models of a task are compared: what is said of one alone, and of one against another."""

    alone: Callable[[Dataset, Results], str]
    against: Callable[[Dataset, Results, Results], _Difference]


def _precision(dataset: Dataset, own: Results, theirs: Results) -> _Difference:
    ap = coco_metrics(dataset, own).ap
    by, interval = paired_difference(dataset, own, theirs, samples=SAMPLES)
    return _Difference(
        figure="AP",
        own=ap,
        theirs=ap - by,
        by=by,
        interval=interval,
        better=interval[0] > 0,
        test=", over samples of the images",
        chance=f"{100 * (1 - CHANCE):.0f} %",
    )


def _localisation(dataset: Dataset, own: Results, theirs: Results) -> _Difference:
    found = compare_wrong(localised_wrongly(dataset, own), localised_wrongly(dataset, theirs))
    return _Difference(
        figure="localisation error",
        own=found.candidate,
        theirs=found.champion,
        by=found.better_by,
        interval=(found.low, found.high),
        better=found.better,
        test=f"; exact paired test: {p_text(found.p_value)}",
        chance=f"p < {CHANCE}",
        comparison=found,
    )


_KINDS: dict[TaskName, _Kind] = {
    "detection": _Kind(lambda dataset, own: f"AP {coco_metrics(dataset, own).ap:.2f} %", _precision),
    "localisation": _Kind(
        lambda dataset, own: f"localisation error {100 * localised_wrongly(dataset, own).mean():.2f} %", _localisation
    ),
}


def _dataset(workspace: Workspace, version: ModelVersion) -> Dataset:
    dataset = open_dataset(workspace, version.tags["dataset"])
    if dataset.fingerprint != version.tags["dataset_fingerprint"]:
        raise refused(version, [f"dataset {dataset.name!r} is not the one any more that it was trained on"])
    return dataset


def _results(
    workspace: Workspace, tracking: Tracking, version: ModelVersion, of: ModelVersion, dataset: Dataset
) -> Results:
    """Return what a version finds, from this workspace or the version itself; PromotionRefusedError if it has none."""
    tags = of.tags
    split, protocol = tags["split"], tags["protocol"]
    path: Path | None = results_path(workspace, dataset.fingerprint, split, protocol, tags["weights_sha256"])
    with tempfile.TemporaryDirectory() as folder:
        if path is None or not path.exists():
            path = fetch_scores(tracking, of, protocol, Path(folder))
        if path is None:
            verb = "localise" if task_of_version(of) == "localisation" else "evaluate"
            command = f"resnet-pipeline {verb} {of.uri} --dataset {dataset.name}"
            raise refused(version, [f"version {of.version} has no result file; make it: {command}"])
        try:
            return read_results(path, dataset, split)
        except UserError as error:
            raise refused(version, [str(error)]) from None
