"""A staged dataset: its manifest, its index, and byte views onto its memory-mapped shards."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from resnet_pipeline.data.checksums import CHECKSUMS, Checksums, checksum, read_checksums, table_of
from resnet_pipeline.data.manifest import (
    INDEX,
    MANIFEST,
    MEAN_IMAGE,
    SHARDS,
    DamagedDatasetError,
    DatasetFacts,
    Manifest,
    NoDatasetError,
    read_manifest,
)
from resnet_pipeline.data.objects import OBJECTS, Objects, read_objects
from resnet_pipeline.data.order import Int64
from resnet_pipeline.data.shard_reader import CachedShards, LocalShards, ShardFiles
from resnet_pipeline.errors import UserError
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.cache import Cache, CacheFolder, Wanted
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Statistics:
    """Of the training images, in 0..255 units: ``mean_rgb`` float32 [3], ``mean_image`` float32 [H, W, 3].

    ``color_basis`` float64 [3, 3]: column i is a principal component of the RGB values times its eigenvalue, for
    AlexNet's colour noise. The eigenvalue is that of values in 0..1 (fb.resnet.torch's reading of the formula, which
    is not free of units), the product is scaled back to 0..255.
    """

    mean_rgb: npt.NDArray[np.float32]
    mean_image: npt.NDArray[np.float32]
    color_basis: npt.NDArray[np.float64]


class Split:
    """The samples of one split: columns of the index, and their encoded bytes."""

    def __init__(
        self,
        shards: Sequence[str],
        table: pa.Table,
        files: ShardFiles,
        checksums: Checksums | None = None,
        objects: Objects | None = None,
    ) -> None:
        self.shards, self._table, self.files, self.checksums = list(shards), table, files, checksums
        self.objects = objects
        self.labels = _column(table, "label", np.int64)
        self.width = _column(table, "width", np.int32)
        self.height = _column(table, "height", np.int32)
        self.shard = _column(table, "shard", np.int64)
        self._offset = _column(table, "offset", np.int64)
        self._length = _column(table, "length", np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def keys(self) -> list[str]:
        """The samples' original names."""
        keys: list[str] = self._table.column("key").to_pylist()
        return keys

    def shard_of(self, sample: int) -> str:
        """Return the name of the shard that holds a sample."""
        return self.shards[int(self.shard[sample])]

    def encoded(self, sample: int) -> npt.NDArray[np.uint8]:
        """Return a read-only view of a sample's encoded bytes in its memory-mapped shard; waits for the shard.

        Raises UserError, with the sample's name, if they are not those that were staged.
        """
        return self.encoded_each(np.array([sample]))[0]

    def encoded_each(self, samples: Int64) -> list[npt.NDArray[np.uint8]]:
        """Return the same for each of several samples."""
        views = [self._view(int(sample)) for sample in samples]
        if self.checksums is not None:
            found = np.fromiter(map(checksum, views), np.uint64, len(views))
            wrong = np.flatnonzero(found != self.checksums[samples])
            if len(wrong):
                raise self._damaged(int(samples[wrong[0]]))
        return views

    def _view(self, sample: int) -> npt.NDArray[np.uint8]:
        mapped = self.files.mapped(int(self.shard[sample]))
        start, length = self.extent(sample)
        return mapped[start : start + length]

    def _damaged(self, sample: int) -> UserError:
        where = f"sample {self.keys[sample]} in shard {self.shard_of(sample)}"
        remedy = self.files.remedy(int(self.shard[sample]))
        return UserError(f"{where} is not what was staged: its checksum differs; {remedy}")

    def extent(self, sample: int) -> tuple[int, int]:
        """Return offset and length of a sample's encoded bytes in its shard."""
        return int(self._offset[sample]), int(self._length[sample])

    def part(self, samples: Int64) -> Split:
        """Return a split of some of the samples, int64 [N], in the same shards."""
        checksums = None if self.checksums is None else self.checksums[samples]
        objects = None if self.objects is None else self.objects.part(samples)
        return Split(self.shards, self._table.take(samples), self.files, checksums, objects)


class Dataset:
    """A staged dataset, in a folder or in a bucket.

    ``path`` is the folder that its shards are read from: the dataset's own, or the cache.

    Example: ``Dataset.open(Path("work/datasets/digits")).splits["val"].encoded(0)``
    """

    def __init__(
        self, storage: Storage, path: Path, manifest: Manifest, splits: dict[str, Split], statistics: Statistics
    ) -> None:
        self.storage, self.path = storage, path
        self.manifest, self.splits, self.statistics = manifest, splits, statistics
        self.name, self.classes, self.fingerprint = manifest.name, list(manifest.classes), manifest.fingerprint

    @classmethod
    def open(cls, place: Path | Storage, cache: CacheFolder | None = None) -> Dataset:
        """Open the dataset of a folder, or of any storage by means of a cache.

        Manifest, index, checksums and mean image are read now, shards when they are needed. Raises NoDatasetError if
        there is none, DamagedDatasetError if one of these files is damaged, other UserErrors if they can't be read.
        """
        storage = LocalStorage(place) if isinstance(place, Path) else place
        cache = None if isinstance(storage, LocalStorage) else cache
        manifest = read_manifest(storage)
        make: Callable[[list[Wanted]], ShardFiles]
        if isinstance(storage, LocalStorage):
            path = storage.root
            make = partial(LocalShards, path, newest=(path / MANIFEST).stat().st_mtime)
        elif cache is not None:
            path = cache.path
            make = partial(CachedShards, storage, folder=cache)
        else:
            raise ValueError(f"a dataset in {storage.url} needs a cache")
        index, mean_image = (_content(storage, name, manifest.files[name], cache) for name in (INDEX, MEAN_IMAGE))
        table = _parsed(storage, INDEX, lambda: table_of(index))
        objects: dict[str, Objects] = {}
        if OBJECTS in manifest.files:
            content = _content(storage, OBJECTS, manifest.files[OBJECTS], cache)
            objects = _parsed(storage, OBJECTS, lambda: read_objects(content))
        checksums = _checksums(storage, manifest) or {}
        splits = {
            name: Split(
                [shard.file for shard in split.shards],
                table.filter(pc.equal(table["split"], name)),
                make([Wanted(f"{SHARDS}/{shard.file}", shard.bytes, shard.sha256) for shard in split.shards]),
                checksums.get(name),
                objects.get(name),
            )
            for name, split in manifest.splits.items()
        }
        statistics = Statistics(
            mean_rgb=np.array(manifest.statistics.mean_rgb, dtype=np.float32),
            mean_image=_parsed(storage, MEAN_IMAGE, lambda: np.load(mean_image)),
            color_basis=np.array(manifest.statistics.color_basis, dtype=np.float64),
        )
        return cls(storage, path, manifest, splits, statistics)

    def trained_on(self, share: float | None) -> Dataset:
        """Return the dataset with this part of each class's training images, evenly spaced; None for all of them.

        Of images that have no class, but objects, it is a part of all. Raises UserError if that leaves a class without
        any.

        Example: ``len(open_dataset(workspace, "digits").trained_on(0.1).splits["train"])``
        """
        train = self.splits.get("train")
        if share is None or train is None:
            return self
        chosen = []
        unlabelled = self.manifest.objects is not None and not (train.labels >= 0).any()
        kinds = [(-1, "of objects")] if unlabelled else list(enumerate(self.classes))
        for label, name in kinds:
            own = np.flatnonzero(train.labels == label)
            kept = int(share * len(own) + 1e-9)  # 0.29 of 100 are 29
            if kept == 0:
                raise UserError(
                    f"train_share {share:g} leaves no image of class {name!r}, which has {len(own)} for training; take "
                    "a larger one"
                )
            chosen.append(own[np.arange(kept) * len(own) // kept])
        part = train.part(np.sort(np.concatenate(chosen)))
        return Dataset(self.storage, self.path, self.manifest, {**self.splits, "train": part}, self.statistics)

    @property
    def facts(self) -> DatasetFacts:
        """What runs and registered models keep of their dataset."""
        return DatasetFacts(
            name=self.name,
            fingerprint=self.fingerprint,
            classes=tuple(self.classes),
            class_words=self.manifest.class_words,
        )

    @property
    def checked(self) -> bool:
        """Whether every sample has a checksum, which readers compare; earlier versions staged none."""
        return all(split.checksums is not None for split in self.splits.values())

    @property
    def shard_wait(self) -> float:
        """Seconds that this process has waited for shards to come."""
        return sum(split.files.waited for split in self.splits.values())

    @property
    def eval_split(self) -> str:
        """The split that is tested on: ``val``, or else ``test``; UserError if there is neither."""
        for name in ("val", "test"):
            if name in self.splits:
                return name
        raise UserError(
            f"dataset {self.name!r} has neither a val nor a test split; stage it again with one, or with --holdout N"
        )


def split_of_objects(dataset: Dataset, split: str) -> Split:
    """Return a split whose images have objects; UserError if there is none, or it is empty."""
    samples = dataset.splits.get(split)
    if samples is None or len(samples) == 0:
        raise UserError(f"split {split!r} of dataset {dataset.name!r} has no images")
    if samples.objects is None:
        raise UserError(
            f"dataset {dataset.name!r} ({dataset.manifest.layout}) has no boxes, which detection needs; stage COCO or "
            "Pascal VOC, or ILSVRC with its boxes (docs/operations.md)"
        )
    return samples


def checked_manifest(storage: Storage) -> Manifest:
    """Return the manifest of a dataset whose small files match it and whose shards are there, of the right size.

    What is in the shards is not looked at: ``data verify`` does that. Raises NoDatasetError if there is no manifest,
    DamagedDatasetError if a file is missing or is not as the manifest says, other UserErrors if one can't be read.

    Example: ``checked_manifest(storage_at("s3://bucket/digits")).fingerprint``
    """
    manifest = read_manifest(storage)
    for name, sha256 in manifest.files.items():
        _content(storage, name, sha256, None)
    _checksums(storage, manifest)
    sizes = {stored.name: stored.size for stored in storage.files(f"{SHARDS}/")}
    for split in manifest.splits.values():
        for shard in split.shards:
            name = f"{SHARDS}/{shard.file}"
            if sizes.get(name) != shard.bytes:
                what = f"has not its {shard.bytes:,} bytes" if name in sizes else "is missing"
                raise DamagedDatasetError(f"{storage.url}/{name} {what}; stage the dataset again")
    return manifest


def _content(storage: Storage, name: str, sha256: str, cache: CacheFolder | None) -> BytesIO:
    """Return a small file's verified content; it is kept in the cache if there is one."""
    address = f"{storage.url}/{name}"
    stored = storage.stat(name)
    if stored is None:
        raise DamagedDatasetError(f"{address} is missing; stage the dataset again")
    if cache is not None:
        user, wanted = Cache(cache), Wanted(name, stored.size, sha256)
        path = user.hold(storage, wanted)
        assert path is not None  # without a condition it comes or raises
        content = path.read_bytes()
        user.release(wanted)
    else:
        content = storage.read(name)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamagedDatasetError(f"{address} does not match its checksum in the manifest; stage the dataset again")
    return BytesIO(content)


def _checksums(storage: Storage, manifest: Manifest) -> dict[str, Checksums] | None:
    samples = {name: split.samples for name, split in manifest.splits.items()}
    try:
        return read_checksums(storage, manifest.fingerprint, samples)
    except ValueError as error:
        raise DamagedDatasetError(
            f"{storage.url}/{CHECKSUMS} is damaged ({error}); remove it: `resnet-pipeline data verify` makes it anew"
        ) from None


def _parsed(storage: Storage, name: str, parse: Callable[[], T]) -> T:
    try:
        return parse()
    except Exception as error:  # as staging wrote it, by its hash, but not in this version's form
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedDatasetError(f"{storage.url}/{name} can't be read ({reason}); stage the dataset again") from None


def _column(table: pa.Table, name: str, dtype: Any) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table.column(name).to_numpy().astype(dtype, copy=False)
    return values


def open_dataset(workspace: Workspace, name: str) -> Dataset:
    """Open a dataset of the workspace, from S3 through this machine's cache; UserError if it is not there.

    Example: ``open_dataset(Workspace.of(), "digits").splits["val"].labels``
    """
    try:
        dataset = open_dataset_at(workspace, workspace.dataset(name))
    except NoDatasetError:
        names = dataset_names(workspace)
        known = f"staged are: {', '.join(names)}" if names else "none is staged"
        raise UserError(
            f"no dataset {name!r} under {workspace.data} ({known}); "
            f"stage it with: resnet-pipeline stage --source FOLDER-OR-ARCHIVE --name {name}"
        ) from None

    if not dataset.checked:
        _say_unchecked(name, dataset.fingerprint)
    return dataset


@cache
def _say_unchecked(name: str, fingerprint: str) -> None:
    """Say once that damage would not be noticed."""
    _log.info(
        "dataset %r has no checksums of its samples, so a damaged one is not noticed: an earlier version staged it; "
        "`resnet-pipeline data verify %s` makes them",
        name,
        name,
    )


def open_dataset_at(workspace: Workspace, address: str) -> Dataset:
    """Open the dataset at an address, as ``Workspace.dataset`` gave it on another machine, with this one's cache.

    Example: ``open_dataset_at(Workspace.of(), "s3://bucket/datasets/digits")``
    """
    return Dataset.open(storage_at(address), CacheFolder(workspace.cache, workspace.cache_limit))


def dataset_names(workspace: Workspace) -> list[str]:
    """Return the names of the staged datasets.

    Example: ``dataset_names(Workspace.of())``
    """
    storage = storage_at(workspace.data)
    if isinstance(storage, LocalStorage):  # a folder may hold much else, which need not be walked
        return sorted(p.parent.name for p in storage.root.glob(f"*/{MANIFEST}") if not p.parent.name.startswith("."))
    paths = [stored.name.split("/") for stored in storage.files()]
    return [path[0] for path in paths if len(path) == 2 and path[1] == MANIFEST and not path[0].startswith(".")]
