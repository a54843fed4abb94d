"""The gate before a champion among detectors: better average precision, by more than chance, on the same images."""

from __future__ import annotations

import tempfile
from pathlib import Path

from resnet_pipeline.adapters.mlflow.registry import (
    CHAMPION,
    ModelVersion,
    alias_of,
    fetch_scores,
    resolve,
)
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.detection.metrics import coco_metrics, paired_difference
from resnet_pipeline.detection.results import Results, read_results
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.promotion import CHANCE
from resnet_pipeline.jobs.detect import results_path
from resnet_pipeline.jobs.promote import Promotion, let_through, promotion_of, refused
from resnet_pipeline.jobs.references import parse_registered
from resnet_pipeline.workspace import Workspace

SAMPLES = 1_000
"""Samples of the images that the difference's interval is from."""


def promote_detector(workspace: Workspace, reference: str) -> Promotion:
    """Give a registered detector the alias ``champion`` if its boxes are better than the champion's beyond chance.

    That is so if the whole 95 % interval of the difference in COCO's average precision, over samples of the images of
    both, lies above 0. A first champion needs only its result file. Raises PromotionRefusedError with the reason.

    Example: ``promote_detector(Workspace.of(), "scenes-maskrcnn-resnet8-c4").reason``
    """
    tracking = Tracking(workspace)
    version = resolve(tracking, parse_registered(workspace, reference).uri)
    champion = alias_of(tracking, version.name, CHAMPION)
    if champion and champion.version == version.version:
        return promotion_of(tracking, version, champion, None, "champion already")
    dataset = _dataset(workspace, version)
    own = _results(workspace, tracking, version, version, dataset)
    ap = coco_metrics(dataset, own).ap
    if champion is None:
        reason = f"first champion, AP {ap:.2f} % on {len(own.found):,} images"
        return let_through(tracking, promotion_of(tracking, version, None, None, reason))
    for tag, what in (("dataset_fingerprint", "dataset"), ("split", "split")):
        if version.tags.get(tag) != champion.tags.get(tag):
            raise refused(version, [f"it was tested on another {what} than champion version {champion.version}"])
    theirs = _results(workspace, tracking, version, champion, dataset)
    by, (low, high) = paired_difference(dataset, own, theirs, samples=SAMPLES)
    text = (
        f"AP {ap:.2f} % against {ap - by:.2f} % of version {champion.version} on the same {len(own.found):,} images: "
        f"{'better' if by >= 0 else 'worse'} by {abs(by):.2f} points (95 % interval of the difference {low:.2f} to "
        f"{high:.2f}, over samples of the images)"
    )
    if low <= 0:
        raise refused(version, [f"{text}; better by more than chance ({100 * (1 - CHANCE):.0f} %) is needed"])
    return let_through(tracking, promotion_of(tracking, version, champion, None, text))


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
            command = f"resnet-pipeline evaluate {of.uri} --dataset {dataset.name}"
            raise refused(version, [f"version {of.version} has no result file; make it: {command}"])
        try:
            return read_results(path, dataset, split)
        except UserError as error:
            raise refused(version, [str(error)]) from None
