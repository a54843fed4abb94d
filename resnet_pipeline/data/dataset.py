"""A staged dataset: its manifest, its index, and byte views onto its memory-mapped shards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from resnet_pipeline.data.checksums import Checksums, checksum
from resnet_pipeline.data.manifest import (
    MANIFEST,
    MEAN_IMAGE,
    SHARDS,
    DamagedDatasetError,
    DatasetFacts,
    Manifest,
    NoDatasetError,
    read_manifest,
)
from resnet_pipeline.data.mapped_tables import MAPPED_FROM
from resnet_pipeline.data.objects import OBJECTS, Objects, read_objects
from resnet_pipeline.data.order import Int64
from resnet_pipeline.data.shard_reader import CachedShards, LocalShards, ShardFiles
from resnet_pipeline.data.small_files import NUMBERS, checksums_of, column, content_of, index_of, parsed
from resnet_pipeline.errors import UserError
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.cache import CacheFolder, Wanted
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


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
    """The samples of one split: columns of the index, and their encoded bytes.

    Those of a large dataset are read-only, and lie in pages that all processes of the machine share.
    """

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
        columns = {name: column(table, name, kind) for name, kind in NUMBERS.items()}
        self.labels, self.width, self.height = columns["label"], columns["width"], columns["height"]
        self.shard, self._offset, self._length = columns["shard"], columns["offset"], columns["length"]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def keys(self) -> list[str]:
        """The samples' original names."""
        keys: list[str] = self._table.column("key").to_pylist()
        return keys

    def key_of(self, sample: int) -> str:
        """Return a sample's original name, without making a list of all."""
        return str(self._table.column("key")[sample])

    def shard_of(self, sample: int) -> str:
        """Return the name of the shard that holds a sample."""
        return self.shards[int(self.shard[sample])]

    def broken(self, sample: int, reason: str) -> UserError:
        """Return the error that names a sample that can't be decoded and its shard."""
        return UserError(
            f"sample {self.key_of(sample)} in shard {self.shard_of(sample)} can't be decoded "
            f"({reason.splitlines()[0]}); the shard changed after staging: stage the dataset again"
        )

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
        return self.files.part(int(self.shard[sample]), *self.extent(sample))

    def _damaged(self, sample: int) -> UserError:
        where = f"sample {self.key_of(sample)} in shard {self.shard_of(sample)}"
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

        The tables of a large one are mapped, if there is a cache to keep them in (`mapped_tables`).

        Manifest, index, checksums and mean image are read now, shards when they are needed. Raises NoDatasetError if
        there is none, DamagedDatasetError if one of these files is damaged, other UserErrors if they can't be read.
        """
        storage = LocalStorage(place) if isinstance(place, Path) else place
        manifest = read_manifest(storage)
        large = sum(split.samples for split in manifest.splits.values()) >= MAPPED_FROM
        kept = cache.path / "indexes" if cache and large else None
        cache = None if isinstance(storage, LocalStorage) else cache
        make: Callable[[list[Wanted]], ShardFiles]
        if isinstance(storage, LocalStorage):
            path = storage.root
            make = partial(LocalShards, path, newest=(path / MANIFEST).stat().st_mtime)
        elif cache is not None:
            path = cache.path
            make = partial(CachedShards, storage, folder=cache)
        else:
            raise ValueError(f"a dataset in {storage.url} needs a cache")
        mean_image = content_of(storage, MEAN_IMAGE, manifest.files[MEAN_IMAGE], cache)
        tables = index_of(storage, manifest, cache, kept)
        objects: dict[str, Objects] = {}
        if OBJECTS in manifest.files:
            content = content_of(storage, OBJECTS, manifest.files[OBJECTS], cache)
            objects = parsed(storage, OBJECTS, lambda: read_objects(content))
        checksums = checksums_of(storage, manifest, kept) or {}
        splits = {
            name: Split(
                [shard.file for shard in split.shards],
                tables[name],
                make([Wanted(f"{SHARDS}/{shard.file}", shard.bytes, shard.sha256) for shard in split.shards]),
                checksums.get(name),
                objects.get(name),
            )
            for name, split in manifest.splits.items()
        }
        statistics = Statistics(
            mean_rgb=np.array(manifest.statistics.mean_rgb, dtype=np.float32),
            mean_image=parsed(storage, MEAN_IMAGE, lambda: np.load(mean_image)),
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
        return self.part("train", np.sort(np.concatenate(chosen)))

    def part(self, split: str, samples: Int64) -> Dataset:
        """Return the dataset with these samples int64 [N] of a split alone, in this order.

        Example: ``dataset.part("val", np.arange(100))``
        """
        splits = {**self.splits, split: self.splits[split].part(samples)}
        return Dataset(self.storage, self.path, self.manifest, splits, self.statistics)

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
        content_of(storage, name, sha256, None)
    checksums_of(storage, manifest, None)
    sizes = {stored.name: stored.size for stored in storage.files(f"{SHARDS}/")}
    for split in manifest.splits.values():
        for shard in split.shards:
            name = f"{SHARDS}/{shard.file}"
            if sizes.get(name) != shard.bytes:
                what = f"has not its {shard.bytes:,} bytes" if name in sizes else "is missing"
                raise DamagedDatasetError(f"{storage.url}/{name} {what}; stage the dataset again")
    return manifest


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
