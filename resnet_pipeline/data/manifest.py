"""What a dataset's manifest says, how it is read, and its fingerprint; staging/manifest.py writes it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from resnet_pipeline.config import ConfigError, RunConfig
from resnet_pipeline.config_io import from_dict, hash_of
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import read_json
from resnet_pipeline.records import OMIT_NONE, RecordError, plain_record, read_record
from resnet_pipeline.storage.base import Storage

FORMAT = 2
MANIFEST, INDEX, SOURCE, MEAN_IMAGE = "manifest.json", "index.parquet", "source.json", "mean_image.npy"
SHARDS = "shards"
_NOT_COUNTED = ("name", "hidden", "ignored", "fingerprint")


class NoDatasetError(UserError):
    """There is no dataset at an address."""


class DamagedDatasetError(UserError):
    """A dataset's own files are not as they were staged: staging it again mends that."""


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A shard: its name in the folder of shards, its SHA-256, its size in bytes, and how many samples it holds."""

    file: str
    sha256: str
    bytes: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class SplitEntry:
    """A split: how many samples it has, and the shards that hold them, in their order."""

    samples: int
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True)
class Remark:
    """A file of the source, and why it was refused or what was changed."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file of the source that is no part of the dataset, and why; or a folder of so many ``files``."""

    file: str
    reason: str
    files: int


@dataclass(frozen=True, kw_only=True)
class PixelStatistics:
    """Of the training images: how many, their mean in 0..255, and their colours' covariance.

    ``eigenvalues`` are those of values in 0..1, ascending; for ``color_basis`` see `data.dataset.Statistics`.
    """

    images: int
    mean_rgb: tuple[float, ...]
    eigenvalues: tuple[float, ...]
    color_basis: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Resized:
    """How many images were made smaller, to which shorter side, and the quality of their JPEGs."""

    max_shorter_side: int | None
    quality: int
    images: int


@dataclass(frozen=True, kw_only=True)
class ObjectFacts:
    """Of a dataset whose images have annotated objects: how many they are, and how many have masks.

    ``clipped`` boxes stood out of their image by more than a pixel; ``left_out`` says which objects, or masks, are not
    in the dataset, and why. ``categories`` are the classes' numbers in COCO's result files.
    """

    objects: int
    masks: int
    clipped: int
    left_out: tuple[Remark, ...]
    categories: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A dataset's manifest.

    ``layout`` names how the source was laid out and ``md5`` holds the published MD5s that its archives were found to
    have. ``classes`` are in the order of their labels, ``class_words`` says what they are called. ``files`` are the
    SHA-256s of index and mean image. ``max_value`` is white in images of more than 8 bits, if it was given. ``hidden``
    are files that systems leave, ``ignored`` others that have no place; the fingerprint, which is of what was packed,
    does not depend on them. ``objects`` is of a dataset whose images have annotated objects.
    """

    format: int
    name: str
    layout: str
    md5: Mapping[str, str]
    classes: tuple[str, ...]
    class_words: Mapping[str, str]
    splits: Mapping[str, SplitEntry]
    files: Mapping[str, str]
    statistics: PixelStatistics
    converted: tuple[Remark, ...]
    refused: tuple[Remark, ...]
    resized: Resized
    max_value: int | None = field(default=None, metadata=OMIT_NONE)
    hidden: tuple[LeftOut, ...] | None = field(default=None, metadata=OMIT_NONE)
    ignored: tuple[LeftOut, ...] | None = field(default=None, metadata=OMIT_NONE)
    objects: ObjectFacts | None = field(default=None, metadata=OMIT_NONE)
    fingerprint: str = ""

    def account(self) -> dict[str, int]:
        """Return what became of the source's files: how many were packed, refused, hidden and ignored."""
        packed = sum(split.samples for split in self.splits.values())
        hidden, ignored = (sum(item.files for item in kind or ()) for kind in (self.hidden, self.ignored))
        return {"packed": packed, "refused": len(self.refused), "hidden": hidden, "ignored": ignored}

    def to_bytes(self) -> bytes:
        """Return the manifest as its file."""
        return (json.dumps(plain_record(self), indent=2, sort_keys=True) + "\n").encode()


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What runs and registered models keep of their dataset.

    ``classes`` are in the order of the labels; ``class_words`` says what they are called, as far as that is known.
    """

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    class_words: Mapping[str, str] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of each class in order, its name if it has none."""
        return tuple(self.class_words.get(name) or name for name in self.classes)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a dataset's source was, and what its files looked like then (``staging.stage.source_fingerprint``).

    ``holdout`` and ``check_md5`` are the options of staging that the manifest does not have, None for their defaults.
    """

    path: str
    fingerprint: str
    holdout: int | None = field(default=None, metadata=OMIT_NONE)
    check_md5: bool | None = field(default=None, metadata=OMIT_NONE)

    def to_bytes(self) -> bytes:
        """Return it as its file."""
        return (json.dumps(plain_record(self), indent=2) + "\n").encode()


def fingerprint_of(content: Mapping[str, object]) -> str:
    """Return the SHA-256 of a manifest's plain content: all but the name, what was left out, and the fingerprint."""
    counted = {key: value for key, value in content.items() if key not in _NOT_COUNTED}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def read_origin(storage: Storage) -> Origin | None:
    """Return what the dataset in a storage notes of its source; None if there is no such note, or it is damaged."""
    if storage.stat(SOURCE) is None:
        return None
    try:
        return read_record(Origin, json.loads(storage.read(SOURCE)))
    except (ValueError, RecursionError, RecordError):
        return None


def read_run_config(path: Path) -> tuple[RunConfig, DatasetFacts]:
    """Return config and dataset from a run's or a model's ``config.json``; UserError names file and field.

    The name of a run's directory has both hashes: UserError, too, for a file that is not of these.

    Example: ``read_run_config(run.config_file)[0].recipe``
    """
    stored = read_json(path)
    try:
        facts = read_record(DatasetFacts, stored.get("dataset"), where="dataset.")
        config = from_dict(RunConfig, stored.get("config") or {}, where="config.")
    except (ConfigError, RecordError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    if named := re.fullmatch(r".+-([0-9a-f]{8})-s\d+-([0-9a-f]{8})", path.parent.name):
        # of the values as they were written: later versions have other fields
        found = facts.fingerprint[:8], hash_of(stored["config"])
        if found != named.groups():
            raise UserError(
                f"{path} was changed: the hashes of dataset and config are {' and '.join(found)}, its folder's name "
                f"says {' and '.join(named.groups())}; put it back, or train the same run again"
            )
    return config, facts


def read_manifest(storage: Storage) -> Manifest:
    """Return the manifest of the dataset in a storage.

    Raises NoDatasetError if there is none, DamagedDatasetError if it is not as staging wrote it, other UserErrors if
    it can't be read.

    Example: ``read_manifest(storage_at("work/datasets/digits")).classes``
    """
    address = f"{storage.url}/{MANIFEST}"
    if storage.stat(MANIFEST) is None:
        raise NoDatasetError(
            f"no dataset at {storage.url}; stage it with: resnet-pipeline stage --source FOLDER-OR-ARCHIVE --name NAME"
        )
    try:
        content = json.loads(storage.read(MANIFEST))
        unchanged = content.get("format") == FORMAT and content.get("fingerprint") == fingerprint_of(content)
    except (ValueError, AttributeError, RecursionError) as error:
        raise DamagedDatasetError(f"{address} is damaged ({error}); stage the dataset again") from None
    if not unchanged:
        raise DamagedDatasetError(f"{address} was changed, or another version wrote it; stage the dataset again")
    try:
        return read_record(Manifest, content)
    except RecordError as error:
        raise DamagedDatasetError(f"{address}: another version wrote it ({error}); stage the dataset again") from None
