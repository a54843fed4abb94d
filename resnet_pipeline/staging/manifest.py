"""From the records of all shards to the index, the mean image and the manifest, whose hash is the fingerprint."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from resnet_pipeline.data.checksums import CHECKSUMS, Checksums, checksums_file
from resnet_pipeline.data.image_audit import QUALITY, PixelSums
from resnet_pipeline.data.manifest import (
    FORMAT,
    INDEX,
    MANIFEST,
    MEAN_IMAGE,
    LeftOut,
    Manifest,
    PixelStatistics,
    Remark,
    Resized,
    ShardEntry,
    SplitEntry,
    fingerprint_of,
)
from resnet_pipeline.data.objects import OBJECTS, ImageObjects, objects_file
from resnet_pipeline.errors import RefusedError
from resnet_pipeline.files import sha256_of
from resnet_pipeline.records import plain_record
from resnet_pipeline.sources.catalogue import Catalogue, Ignored
from resnet_pipeline.sources.entries import UNLABELLED
from resnet_pipeline.sources.objects import AnnotatedImage
from resnet_pipeline.staging.index_file import IndexWriter
from resnet_pipeline.staging.object_audit import ObjectAudit
from resnet_pipeline.staging.shard_plan import Shard
from resnet_pipeline.staging.shard_writer import Record, new_file
from resnet_pipeline.storage.base import Storage


def labels_of(catalogue: Catalogue) -> dict[str, int]:
    """Return the label of each class: its place among the classes, -1 if the class is not known."""
    return {label: number for number, label in enumerate(catalogue.classes)} | {UNLABELLED: -1}


def write_manifest(
    destination: Storage,
    name: str,
    catalogue: Catalogue,
    records: Iterable[tuple[Shard, Record]],
    *,
    max_shorter_side: int | None,
    max_value: int | None = None,
) -> set[str]:
    """Write index, mean image, checksums and, last, the manifest of a dataset whose shards are all there.

    Returns the names of the shards; one without a sample is not among them. Raises RefusedError if a class is left
    without training images.
    """
    label_of = labels_of(catalogue)
    kinds: set[tuple[str, str]] = set()
    splits: dict[str, list[ShardEntry]] = {}
    refused: list[Remark] = []
    converted: list[Remark] = []
    checksums: dict[str, list[Checksums]] = {}
    resized = 0
    sums: PixelSums | None = None
    audit = ObjectAudit(label_of)
    objects: list[tuple[str, ImageObjects]] = []
    # gather what the shards' records say: rows of the index, remarks, sums of the pixels
    with new_file(destination, INDEX) as path:
        with IndexWriter(path) as index:
            for shard, record in records:
                refused += record.refused
                converted += record.converted
                resized += record.resized
                if sums is None:
                    sums = record.sums
                else:
                    sums.merge(record.sums)
                if not record.rows:
                    continue
                shards = splits.setdefault(shard.split, [])
                checksums.setdefault(shard.split, []).append(np.array(record.checksums, np.uint64))
                packed = [shard.entries[position] for position, *_ in record.rows]
                kinds.update((entry.split, entry.label) for entry in packed)
                index.add(
                    shard.split,
                    len(shards),
                    np.array(record.rows, np.int64)[:, 1:],
                    labels=[label_of[entry.label] for entry in packed],
                    keys=[entry.key for entry in packed],
                )
                if catalogue.objects is not None:
                    for entry, (_, _, _, width, height) in zip(packed, record.rows, strict=True):
                        said = catalogue.objects.get(entry.member.name, AnnotatedImage(file=entry.member.name))
                        place = len(objects) + 1
                        taken = audit.take(shard.split, entry.key, said, width=width, height=height, place=place)
                        objects.append((shard.split, taken))
                shards.append(
                    ShardEntry(file=shard.file, sha256=record.sha256, bytes=record.size, samples=len(record.rows))
                )
        _check_classes(catalogue, kinds)
        statistics, mean_image = _statistics(sums)
        index_sha256 = sha256_of(path)
    # the small files first: the manifest has their hashes
    files = {MEAN_IMAGE: _npy(mean_image)}
    if catalogue.objects is not None:
        files[OBJECTS] = objects_file(objects)
    for file, content in files.items():
        destination.write(file, content)
    # the manifest last: with it the dataset exists
    manifest = Manifest(
        format=FORMAT,
        name=name,
        layout=catalogue.layout,
        md5=catalogue.md5,
        classes=tuple(catalogue.classes),
        class_words=catalogue.class_words,
        splits={
            split: SplitEntry(samples=sum(shard.samples for shard in shards), shards=tuple(shards))
            for split, shards in splits.items()
        },
        files={INDEX: index_sha256} | {file: hashlib.sha256(data).hexdigest() for file, data in files.items()},
        statistics=statistics,
        converted=tuple(sorted(converted, key=attrgetter("file"))),
        refused=tuple(sorted(refused, key=attrgetter("file"))),
        resized=Resized(max_shorter_side=max_shorter_side, quality=QUALITY, images=resized),
        max_value=max_value or None,
        hidden=_left_out(catalogue.hidden),
        ignored=_left_out(catalogue.ignored),
        objects=None if catalogue.objects is None else audit.facts(_categories(catalogue)),
    )
    manifest = replace(manifest, fingerprint=fingerprint_of(plain_record(manifest)))
    of_samples = {split: np.concatenate(own) for split, own in checksums.items()}
    with new_file(destination, CHECKSUMS) as path:
        path.write_bytes(checksums_file(of_samples, manifest.fingerprint))
    destination.write(MANIFEST, manifest.to_bytes())
    return {shard.file for shards in splits.values() for shard in shards}


def _categories(catalogue: Catalogue) -> tuple[int, ...]:
    return tuple(catalogue.category_ids or range(1, len(catalogue.classes) + 1))


def _left_out(files: Iterable[Ignored]) -> tuple[LeftOut, ...] | None:
    return tuple(LeftOut(file=item.file, reason=item.reason, files=item.files) for item in files) or None


def _check_classes(catalogue: Catalogue, packed: set[tuple[str, str]]) -> None:
    if not catalogue.labelled or not len(catalogue.entries.numbers_of("train")):
        return  # classes of objects alone; or a validation set alone: only its table knows all classes
    for label in catalogue.classes:
        if ("train", label) not in packed:
            raise RefusedError(f"no image of class {label!r} under train in {catalogue.address} can be used")


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _statistics(sums: PixelSums | None) -> tuple[PixelStatistics, npt.NDArray[np.float32]]:
    """Return the manifest's statistics and the mean image float32 [H, W, 3]."""
    if sums is None or sums.pixels == 0:
        raise RefusedError("no training image could be read, so there is no mean to subtract")
    mean = sums.rgb / sums.pixels
    covariance = (sums.outer / sums.pixels - np.outer(mean, mean)) / 255**2
    values, vectors = np.linalg.eigh(covariance)
    # a component's sign is arbitrary and differs between libraries; the largest entry is made positive
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])
    if sums.image is not None and sums.same_size:
        mean_image = (sums.image / sums.images).astype(np.float32)
    else:
        mean_image = np.broadcast_to(mean.astype(np.float32), (*sums.side, 3)).copy()
    # + 0: of grey images two values are 0 but for rounding, whose sign, and so that of a written -0.0, differs between
    # processors; one dataset has one fingerprint everywhere
    statistics = PixelStatistics(
        images=sums.images,
        mean_rgb=tuple(round(float(m), 6) for m in mean),
        eigenvalues=tuple((np.round(values, 10) + 0).tolist()),
        color_basis=tuple(map(tuple, (np.round(vectors * values * 255, 8) + 0).tolist())),
    )
    return statistics, mean_image
