"""Looking at a staged dataset: whether it is intact, what is in it, what training sees of it."""

from __future__ import annotations

import hashlib
import itertools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.checksums import CHECKSUMS, checksum, checksums_file
from resnet_pipeline.data.dataset import Dataset, Split, open_dataset
from resnet_pipeline.data.duplicates import (
    Duplicates,
    NearDuplicates,
    difference_hash,
    duplicates_of,
    near_duplicates_of,
)
from resnet_pipeline.data.image_files import ImageError, open_image
from resnet_pipeline.data.loaders import crops_at, train_batches
from resnet_pipeline.data.manifest import SHARDS, PixelStatistics, Remark, ShardEntry
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing
from resnet_pipeline.parallel import cores
from resnet_pipeline.progress import progress
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.report.contact_sheet import Example, contact_sheet
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)
_CHUNK = 64
_SMALL = 64  # a dataset of smaller images is shown as the CIFAR-10 recipes train on it


@dataclass(frozen=True, kw_only=True)
class BadSample:
    """An image that is not what the index says: its split, its name, the shard that holds it, and what is wrong."""

    split: str
    file: str
    shard: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How many shards and samples were looked at, and the bad ones; if none are, what stands there more than once.

    ``near_duplicates`` is None if nobody asked.
    """

    dataset: Dataset
    shards: int
    samples: int
    bad_shards: list[Remark]
    bad_samples: list[BadSample]
    duplicates: Duplicates = field(default_factory=Duplicates)
    near_duplicates: NearDuplicates | None = None

    @property
    def good(self) -> bool:
        """Nothing was wrong."""
        return not self.bad_shards and not self.bad_samples


def verify_dataset(
    workspace: Workspace, name: str, *, threads: int | None = None, near_duplicates: bool = False
) -> Verification:
    """Compare every shard with its checksum in the manifest and decode every sample completely, in threads.

    With ``near_duplicates`` images are found, too, that look alike across splits and classes.
    A dataset that is good, and has no checksums of its samples (an earlier version staged it), gets them.
    Raises UserError if the dataset can't be opened: missing, or its manifest, index or mean image damaged.

    Example: ``verify_dataset(Workspace.of(), "digits").good``
    """
    # what there is to check
    dataset = open_dataset(workspace, name)
    shards = {s.file: s.sha256 for split in dataset.manifest.splits.values() for s in split.shards}
    total = sum(len(split) for split in dataset.splits.values())
    bad_shards: list[Remark] = []
    bad_samples: list[BadSample] = []
    checksums: dict[str, list[int]] = {name: [] for name in dataset.splits}
    hashes: list[int] = []

    def check(chunk: _Chunk) -> tuple[_Seen, str | None, list[BadSample]]:
        fault = _shard_fault(dataset.storage, chunk.shard, shards[chunk.shard]) if chunk.first else None
        seen = _Seen([], [] if near_duplicates else None)
        return seen, fault, list(_sample_faults(dataset.storage, dataset.splits[chunk.split], chunk, seen))

    # check all of it in threads, and gather what is wrong in the order of the shards
    with (
        progress(f"verifying {name}", total=total) as bar,
        warnings.catch_warnings(),
        ThreadPoolExecutor(threads or cores()) as pool,  # decoding and hashing let go of Python's lock
    ):
        warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata; the pixels decide
        chunks = list(_chunks(dataset))
        for chunk, (seen, fault, found) in zip(chunks, pool.map(check, chunks), strict=True):
            if fault:
                bad_shards.append(Remark(chunk.shard, fault))
            bad_samples += found
            checksums[chunk.split] += seen.checksums
            hashes += seen.hashes or []
            bar.advance(len(chunk.samples), detail=f"{len(bad_samples)} bad")
    # a good dataset without checksums gets those that were computed on the way
    if not dataset.checked and not bad_shards and not bad_samples:
        dataset.storage.write(CHECKSUMS, checksums_file(checksums, dataset.fingerprint))
        _log.info("%s: every sample has a checksum from now on, in %s/%s", name, dataset.storage.url, CHECKSUMS)
    good = not bad_shards and not bad_samples
    return Verification(
        dataset=dataset,
        shards=len(shards),
        samples=total,
        bad_shards=bad_shards,
        bad_samples=bad_samples,
        duplicates=duplicates_of(*_samples(dataset, checksums)) if good else Duplicates(),
        near_duplicates=near_duplicates_of(np.array(hashes, np.uint64), *_samples(dataset, checksums))
        if good and near_duplicates
        else None,
    )


def _samples(
    dataset: Dataset, checksums: Mapping[str, Sequence[int]]
) -> tuple[npt.NDArray[np.uint64], list[str], list[int], list[str]]:
    """Return checksum, split, label and key of each of a dataset's samples."""
    splits = dataset.splits.items()
    return (
        np.array([value for name, _ in splits for value in checksums[name]], np.uint64),
        [name for name, split in splits for _ in range(len(split))],
        [label for _, split in splits for label in split.labels.tolist()],
        [key for _, split in splits for key in split.keys],
    )


class _Seen(NamedTuple):
    """Checksums of the samples that are there, and how those look that are good, if anyone asked."""

    checksums: list[int]
    hashes: list[int] | None


class _Chunk(NamedTuple):
    """Samples of one shard; ``first`` for its first ones."""

    split: str
    shard: str
    samples: range
    first: bool


def _chunks(dataset: Dataset) -> Iterator[_Chunk]:
    for name, split in dataset.splits.items():
        for shard, group in itertools.groupby(range(len(split)), split.shard_of):
            samples = list(group)
            for start in range(samples[0], samples[-1] + 1, _CHUNK):
                yield _Chunk(name, shard, range(start, min(start + _CHUNK, samples[-1] + 1)), start == samples[0])


def _shard_fault(storage: Storage, shard: str, sha256: str) -> str | None:
    try:
        with storage.open(f"{SHARDS}/{shard}") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (UserError, OSError) as error:
        return str(error)
    return None if found == sha256 else "does not match its checksum in the manifest"


def _sample_faults(storage: Storage, split: Split, chunk: _Chunk, seen: _Seen) -> Iterator[BadSample]:
    """Yield the samples of a chunk that are not what the index says, as they lie in the storage, whatever its hash.

    What was seen of them is added to ``seen``.
    """
    extents = [split.extent(sample) for sample in chunk.samples]
    start = extents[0][0]
    try:
        data = storage.read(f"{SHARDS}/{chunk.shard}", start, extents[-1][0] + extents[-1][1] - start)
    except UserError:
        data = None
    for sample, (offset, length) in zip(chunk.samples, extents, strict=True):
        own = b"" if data is None else data[offset - start : offset - start + length]
        if len(own) < length or data is None:
            reason: str | None = "its shard can't be read"
        else:
            seen.checksums.append(checksum(own))
            reason = _fault(own, f"{split.width[sample]}×{split.height[sample]}", seen.hashes)
            if reason is None and split.checksums is not None and seen.checksums[-1] != split.checksums[sample]:
                reason = "does not match its checksum"
        if reason:
            yield BadSample(split=chunk.split, file=split.key_of(sample), shard=chunk.shard, reason=reason)


def _fault(data: bytes, indexed: str, hashes: list[int] | None) -> str | None:
    try:
        with open_image(data) as image:
            image.load()
            if hashes is not None:
                hashes.append(difference_hash(image))
            found = f"{image.width}×{image.height}"
    except ImageError as error:
        return str(error)
    return None if found == indexed else f"is {found} pixels, {indexed} in the index"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The least, the median and the greatest of some numbers."""

    least: int
    median: int
    most: int


@dataclass(frozen=True, kw_only=True)
class SplitStats:
    """What is in a split; ``classes`` are those that have images, sizes are in pixels."""

    images: int
    classes: int
    images_per_class: Spread
    width: Spread
    height: Spread
    shards: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class DatasetStats:
    """What is in a dataset: numbers of classes, of images converted and refused; each split; the pixels' statistics."""

    name: str
    fingerprint: str
    classes: int
    splits: Mapping[str, SplitStats]
    statistics: PixelStatistics
    converted: int
    refused: int


def dataset_stats(workspace: Workspace, name: str) -> DatasetStats:
    """Count what is in a dataset. UserError if it can't be opened.

    Example: ``dataset_stats(Workspace.of(), "digits")``
    """
    dataset = open_dataset(workspace, name)
    manifest = dataset.manifest
    return DatasetStats(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        classes=len(dataset.classes),
        splits={split: _split_stats(dataset.splits[split], entry.shards) for split, entry in manifest.splits.items()},
        statistics=manifest.statistics,
        converted=len(manifest.converted),
        refused=len(manifest.refused),
    )


def _split_stats(split: Split, shards: Sequence[ShardEntry]) -> SplitStats:
    per_class = np.bincount(split.labels[split.labels >= 0])  # an unlabelled test split has -1
    per_class = per_class[per_class > 0]
    return SplitStats(
        images=len(split),
        classes=len(per_class),
        images_per_class=_spread(per_class) if len(per_class) else Spread(least=0, median=0, most=0),
        width=_spread(split.width),
        height=_spread(split.height),
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
    )


def _spread(values: npt.NDArray[np.integer]) -> Spread:
    return Spread(least=int(values.min()), median=int(np.median(values)), most=int(values.max()))


def show_dataset(
    workspace: Workspace,
    name: str,
    *,
    recipe: str | None = None,
    seed: int = 0,
    epoch: int = 0,
    count: int = 16,
    output: Path | None = None,
) -> Path:
    """Write a PNG of an epoch's first training crops beside their images, and return its path.

    Without a recipe, images are cut as ImageNet's are, small ones as CIFAR-10's. Raises UserError for an unknown
    recipe, or an output that can't be written.

    Example: ``show_dataset(Workspace.of(), "digits", recipe="digits/resnet8", count=4)``
    """
    dataset = open_dataset(workspace, name)
    if "train" not in dataset.splits:
        raise UserError(f"dataset {name!r} has no training images to show the crops of")
    train = dataset.splits["train"]
    small = max(np.median(train.width), np.median(train.height)) <= _SMALL
    config = get_recipe(recipe or ("cifar10/resnet20" if small else "imagenet/resnet50"))
    path = output or workspace.reports / f"{name}-crops.png"
    if path.suffix.lower() != ".png":
        raise UserError(f"--output {path} must end in .png")
    examples = list(_examples(dataset, config, seed, epoch, min(count, len(train))))
    sheet = contact_sheet(
        examples,
        title=f"{name}: the first {len(examples)} crops of epoch {epoch}, seed {seed}, {config.recipe}",
        background=dataset.statistics.mean_rgb,
    )
    try:
        with replacing(path) as temporary:
            sheet.save(temporary, "PNG")
    except OSError as error:
        raise UserError(f"--output {path} can't be written: {error.strerror or error}") from None
    return path


def _examples(dataset: Dataset, config: RunConfig, seed: int, epoch: int, count: int) -> Iterator[Example]:
    """Yield what the loader gives at the first positions of an epoch: a sample's crop depends on its position alone."""
    train, augment = dataset.splits["train"], config.augment
    first = epoch * len(train)
    positions = np.arange(first, first + count, dtype=np.int64)
    plan = crops_at(positions, dataset, train, augment, seed=seed)
    options = {"seed": seed, "batch": 1, "micro_batch": 1, "start_step": first, "steps": count}
    with train_batches(dataset, augment=augment, **options) as batches:  # type: ignore[arg-type]
        for batch, window, flip in zip(batches, plan.window.tolist(), plan.flip, strict=True):
            sample = int(batch.index[0])
            with open_image(train.encoded(sample).tobytes()) as image:
                original = image.convert("RGB")
            name = f"{dataset.classes[int(batch.labels[0])]}  {Path(train.key_of(sample)).name}"
            crop = (batch.images[0].numpy() + batch.color[0].numpy()).clip(0, 255).astype(np.uint8)
            yield Example(
                image=original,
                window=tuple(window),
                crop=Image.fromarray(crop),
                caption=f"{name}  mirrored" if flip else name,
            )
