"""The promotion job: a registered version becomes the champion if it is better than the champion before it."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from resnet_pipeline.adapters.mlflow.registry import (
    CHAMPION,
    ModelVersion,
    alias_of,
    fetch_scores,
    resolve,
    set_alias,
)
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.config import ViewConfig
from resnet_pipeline.config_io import from_dict
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.promotion import CHANCE, Comparison, compare
from resnet_pipeline.evaluation.protocols import protocol_of
from resnet_pipeline.evaluation.scores import Scores, read_scores, score_path
from resnet_pipeline.evaluation.statistics import p_text
from resnet_pipeline.jobs.references import parse_registered
from resnet_pipeline.jobs.register import ensemble_scores, record_tests
from resnet_pipeline.workspace import Workspace


class PromotionRefusedError(UserError):
    """The version is not let through; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What came of it: the version, the champion before it and how they compare, None for a first champion.

    ``serve`` is the command that serves the champion.
    """

    version: ModelVersion
    before: ModelVersion | None
    comparison: Comparison | None
    reason: str
    serve: str


def promote(
    workspace: Workspace,
    reference: str,
    protocol: str,
    *,
    top: Literal[1, 5] = 1,
) -> Promotion:
    """Give a registered version the alias ``champion`` if it is better than the champion by more than chance.

    Both must have scores of the whole split under the protocol, on the dataset of one fingerprint; a first champion
    needs only the scores. Scores are looked for in the workspace, then at the version itself. ``reference`` is
    ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, NAME@ALIAS, or a NAME, whose candidate is meant.

    Raises PromotionRefusedError with all reasons, UserError for a reference that points nowhere.

    Example: ``promote(Workspace.of(), "digits-resnet8@candidate", "10-crop").reason``
    """
    tracking = Tracking(workspace)
    version = resolve(tracking, parse_registered(workspace, reference).uri)
    champion = alias_of(tracking, version.name, CHAMPION)
    if champion and champion.version == version.version:
        return promotion_of(tracking, version, champion, None, "champion already")
    tested = [_tested(workspace, tracking, one, protocol) for one in (version, champion) if one]
    reasons = [one for one in tested if isinstance(one, str)]
    if champion and version.tags.get("dataset_fingerprint") != champion.tags.get("dataset_fingerprint"):
        reasons.append(
            f"version {version.version} is of dataset {_data(version)}, "
            f"champion version {champion.version} of {_data(champion)}"
        )
    scores = [one for one in tested if isinstance(one, Scores)]
    if reasons:
        raise refused(version, reasons)
    if champion is None:
        return let_through(
            tracking, promotion_of(tracking, version, None, None, f"first champion, {protocol} scores complete")
        )
    comparison = _compared(version, scores[0], scores[1], top)
    text = (
        f"{protocol} top-{top} error {comparison.candidate:.2f} % against {comparison.champion:.2f} % of version "
        f"{champion.version} on the same {comparison.images:,} images: {_difference(comparison)}"
    )
    if not comparison.better:
        raise refused(version, [f"{text}; better by more than chance (p < {CHANCE}) is needed"])
    return let_through(tracking, promotion_of(tracking, version, champion, comparison, text))


def _tested(workspace: Workspace, tracking: Tracking, version: ModelVersion, protocol: str) -> Scores | str:
    """Return a version's scores, which are recorded with it, or the reason why it has none that count."""
    with tempfile.TemporaryDirectory() as folder:
        found = _scores(workspace, tracking, version, protocol, Path(folder))
        if isinstance(found, str):
            return found
        path, scores = found
        record_tests(tracking, version, {path: scores})
    return scores


def _compared(version: ModelVersion, candidate: Scores, champion: Scores, top: Literal[1, 5]) -> Comparison:
    try:
        return compare(candidate, champion, top=top)
    except UserError as error:
        raise refused(version, [str(error)]) from None


def _difference(comparison: Comparison) -> str:
    by, low, high = comparison.better_by, comparison.low, comparison.high
    word = "better"
    if by < 0:
        word, by, low, high = "worse", -by, -high, -low
    interval = f"95 % interval {low:.2f} to {high:.2f}"
    return f"{word} by {by:.2f} points ({interval}; exact paired test: {p_text(comparison.p_value)})"


def _scores(
    workspace: Workspace, tracking: Tracking, version: ModelVersion, protocol: str, folder: Path
) -> tuple[Path, Scores] | str:
    """Return a version's score file and what it holds, or the reason why it can't count."""
    tags = version.tags
    # what the version says of its tests
    missing = [key for key in ("views", "split", "split_images", "weights_sha256") if key not in tags]
    if missing:
        return f"version {version.version} has no tag {missing[0]!r}: an older resnet-pipeline registered it"
    id_ = protocol_of(protocol, from_dict(ViewConfig, json.loads(tags["views"]))).id
    path = score_path(
        ensemble_scores(workspace) if "members" in tags else workspace.scores,
        dataset_fingerprint=tags["dataset_fingerprint"],
        split=tags["split"],
        protocol=id_,
        weights_sha256=tags["weights_sha256"],
    )
    # the scores: of this workspace, else those that the version links to
    if not path.exists():
        fetched = fetch_scores(tracking, version, id_, folder)
        if fetched is None:
            members = tags.get("members", "").replace(",", "")
            command = f"ensemble {members} --register {version.name}" if members else f"evaluate {version.uri}"
            return (
                f"version {version.version} has no {protocol} scores; make them: resnet-pipeline {command} "
                f"--dataset {tags.get('dataset', 'NAME')} --protocol {protocol}"
            )
        path = fetched
    # they count if they are of these weights and of all images
    scores = read_scores(path)
    if scores.weights_sha256 != tags["weights_sha256"]:
        return f"the {protocol} scores of version {version.version} are of other weights"
    if len(scores.keys) != int(tags["split_images"]):
        return (
            f"the {protocol} scores of version {version.version} are of {len(scores.keys):,} of the split's "
            f"{int(tags['split_images']):,} images; evaluate all of them"
        )
    return path, scores


def gated(promoted: Callable[[], Promotion]) -> tuple[bool, str, str | None]:
    """Return whether a version is the champion now, why, or why not, and the command that serves it.

    Example: ``gated(lambda: promote(workspace, "models:/cells-resnet18/1", "center"))``
    """
    try:
        promotion = promoted()
    except PromotionRefusedError as refusal:
        return False, str(refusal), None
    return True, promotion.reason, promotion.serve


def promotion_of(
    tracking: Tracking,
    version: ModelVersion,
    before: ModelVersion | None,
    comparison: Comparison | None,
    reason: str,
) -> Promotion:
    """Return what came of a comparison, with the command that serves the champion."""
    serve = f"mlflow models serve -m models:/{version.name}@{CHAMPION} --env-manager local"
    return Promotion(
        version=version,
        before=before,
        comparison=comparison,
        reason=reason,
        serve=f"MLFLOW_TRACKING_URI={tracking.address} {serve}",
    )


def let_through(tracking: Tracking, promotion: Promotion) -> Promotion:
    """Make the version the champion, and return the promotion."""
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    set_alias(tracking, promotion.version, CHAMPION, {"promoted": f"{today}: {promotion.reason}"})
    return promotion


def refused(version: ModelVersion, reasons: list[str]) -> PromotionRefusedError:
    """Return the error that gives the reasons."""
    return PromotionRefusedError(f"{version.name} version {version.version} is not promoted: {'; '.join(reasons)}")


def _data(version: ModelVersion) -> str:
    return f"{version.tags.get('dataset', '?')} ({version.tags.get('dataset_fingerprint', '?')[:12]})"
