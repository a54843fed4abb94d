"""Registered ensembles: a list of registered networks, pinned by version and checked by their weights' hash.

An ensemble's version holds no weights. Six networks would be stored twice, and the copies could not be told from the
versions that were tested; so serving one needs the registry that it came from, once, while it loads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from resnet_pipeline.data.manifest import DatasetFacts
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.trained_model import MODEL_FILES, Member, load_folder
from resnet_pipeline.files import write_json
from resnet_pipeline.records import OMIT_NONE, load_record, plain_record

ENSEMBLE_FILE = "ensemble.json"

CLASSIFIER = "classifier"
"""The folder of a registered localiser that refers to its classifier, as an ensemble of one; and the version's tag."""

COLUMN, DEFAULTS = "image", {"top": 5, "protocol": "center"}
"""What a registered model takes, network or ensemble: a column of images, and the parameters' defaults."""

Fetch = Callable[[str], AbstractContextManager[Path]]
"""Opens a registered model by reference: the folder lives as long as the context."""


@dataclass(frozen=True, kw_only=True)
class MemberVersion:
    """A registered network as a member: ``models:/NAME/VERSION``, its recipe, and the SHA-256 of its weights."""

    uri: str
    recipe: str
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class _Ensemble:
    members: tuple[MemberVersion, ...]
    dataset: DatasetFacts | None = field(default=None, metadata=OMIT_NONE)  # for who looks at the file


def ensemble_digest(members: Sequence[MemberVersion]) -> str:
    """Return the identity of an ensemble: a hash of its members' weights, in any order."""
    return hashlib.sha256("\n".join(sorted(m.weights_sha256 for m in members)).encode()).hexdigest()


def write_ensemble(folder: Path, members: Sequence[MemberVersion], dataset: DatasetFacts) -> None:
    """Write the folder of an ensemble."""
    write_json(folder / ENSEMBLE_FILE, plain_record(_Ensemble(members=tuple(members), dataset=dataset)))


def read_ensemble(folder: Path) -> list[MemberVersion]:
    """Return the members that an ensemble's folder names; UserError if its file is damaged.

    Example: ``[member.uri for member in read_ensemble(folder)]``
    """
    return list(load_record(_Ensemble, folder / ENSEMBLE_FILE).members)


def load_members(folder: Path, fetch: Fetch) -> list[Member]:
    """Load the network of a registered model's folder, or all members of an ensemble's.

    Raises UserError if the folder holds neither, a member can't be had, or its weights are not those that were
    registered.
    """
    if not (folder / ENSEMBLE_FILE).is_file():
        return [load_folder(folder)]
    members = []
    for listed in read_ensemble(folder):
        with fetch(listed.uri) as place:
            member = load_folder(place, name=listed.uri.removeprefix("models:/"))
        if member.weights_sha256 != listed.weights_sha256:
            raise UserError(
                f"{listed.uri} has other weights than when the ensemble was registered; register the ensemble again"
            )
        members.append(member)
    return members


def model_folder(folder: Path, reference: str) -> Path:
    """Return the folder within a downloaded MLflow model that holds what this program put there."""
    inner = folder / "data"
    found = next((p for p in inner.iterdir() if p.is_dir()), folder) if inner.is_dir() else folder
    if not (found / ENSEMBLE_FILE).is_file():
        missing = [name for name in MODEL_FILES if not (found / name).is_file()]
        if missing:
            raise UserError(f"{reference} holds no {missing[0]}: it was not registered by resnet-pipeline")
    return found
