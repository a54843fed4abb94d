"""Packing: audited images into WebDataset tar shards, an index and a manifest.

A shard is a plain tar: for each sample ``NNNNNNNN.jpg`` (the original bytes, or the audit's replacement) and
``NNNNNNNN.json`` (label, class, original name), so that any WebDataset tool reads it. The result depends on the source
alone: order, headers and sums are the same for any number of workers.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from resnet_pipeline.data.audit import SMALL, Audited, PixelSums, audit_chunk, image_size
from resnet_pipeline.data.dataset import FORMAT, INDEX, MANIFEST, MEAN_IMAGE, SOURCE, Dataset, fingerprint
from resnet_pipeline.data.image_folder import Entry, Source, list_entries, open_source
from resnet_pipeline.errors import UserError
from resnet_pipeline.workspace import write_json

SHARD_BYTES = 256 * 2**20
AVERAGED_IMAGES = 10_000
"""The mean image and the colours' covariance are those of this many training images, evenly spaced."""

_CHUNK_IMAGES, _CHUNK_BYTES = 64, 16 * 2**20
_TAR_OVERHEAD = 3 * 512 + 2 * 512  # two headers, a small JSON member, rounding to blocks

Progress = Callable[[int, int, int], None]
"""Called with the images done, the images in all, and the images refused."""


def stage(
    source: Path,
    destination: Path,
    *,
    name: str,
    workers: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    max_refused: float = 0.01,
    replace: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Audit and pack a folder or archive as a dataset in the folder ``destination``; it appears when it is complete.

    Broken images are left out and listed in the manifest; more than the share ``max_refused`` of them is an error.
    Raises UserError for anything wrong with the source, too little disk, or a destination that exists (without
    ``replace``); nothing half-written is left.
    """
    opened = open_source(source)
    entries, classes = list_entries(opened)
    looks = source_fingerprint(source)
    if destination.exists() and not replace:
        raise UserError(f"{destination} exists; choose another name or replace it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(destination.parent, entries)
    with _working_folder(destination) as folder:
        packer = _Packer(folder, classes, shard_bytes)
        with _pool(workers) as pool:
            for done, (entry, data, audited) in enumerate(_audited(opened, entries, pool, packer.sums_of), 1):
                packer.add(entry, data, audited)
                if progress:
                    progress(done, len(entries), len(packer.refused))
        packer.finish(name, source, len(entries), max_refused)
        write_json(folder / SOURCE, {"path": str(source), "fingerprint": looks})
        if destination.exists():
            old = destination.with_name(f".{destination.name}.old")
            destination.rename(old)
            folder.rename(destination)
            shutil.rmtree(old)
        else:
            folder.rename(destination)
    return Dataset.open(destination)


def source_fingerprint(source: Path) -> str:
    """Return a hash of what a source looks like from outside: its files' names, sizes and modification times."""
    digest = hashlib.sha256()
    if not source.is_dir():
        if not source.exists():
            raise UserError(f"source {source} does not exist; name a folder or an archive of images")
        found = source.stat()
        return hashlib.sha256(f"{found.st_size} {found.st_mtime_ns}".encode()).hexdigest()
    for folder, names, files in os.walk(source, followlinks=True):
        names.sort()
        for file in sorted(files):
            path = Path(folder) / file
            found = path.stat() if path.exists() else path.lstat()
            digest.update(f"{path.relative_to(source)} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class _Packer:
    """Writes samples into shards and collects what the manifest and the index say of them."""

    def __init__(self, folder: Path, classes: list[str], shard_bytes: int) -> None:
        self.folder, self.classes, self.shard_bytes = folder, classes, shard_bytes
        self.label_of = {label: number for number, label in enumerate(classes)}
        self.refused: list[dict[str, str]] = []
        self.converted: list[dict[str, str]] = []
        self.sums: PixelSums | None = None
        self.columns: dict[str, list[Any]] = {
            name: [] for name in ("split", "shard", "offset", "length", "width", "height", "label", "key")
        }
        self.shards: dict[str, list[dict[str, Any]]] = {}
        self._open: dict[str, _Shard] = {}
        (folder / "shards").mkdir()

    def sums_of(self, sums: PixelSums) -> None:
        """Take in a chunk's pixel sums."""
        if self.sums is None:
            self.sums = sums
        else:
            self.sums.merge(sums)

    def add(self, entry: Entry, data: bytes, audited: Audited) -> None:
        """Pack one audited image, or note why not."""
        if audited.refused:
            self.refused.append({"file": entry.file.name, "reason": audited.note})
            return
        if audited.replacement is not None:
            self.converted.append({"file": entry.file.name, "reason": audited.note})
        shard = self._open.get(entry.split)
        if shard is not None and shard.bytes >= self.shard_bytes:
            self._close(entry.split)
            shard = None
        shards = self.shards.setdefault(entry.split, [])
        if shard is None:
            shard = self._open[entry.split] = _Shard(self.folder / "shards" / f"{entry.split}-{len(shards):05d}.tar")
        label = self.label_of[entry.label]
        offset, length = shard.add(audited.replacement or data, label, entry)
        row = (entry.split, len(shards), offset, length, audited.width, audited.height, label, entry.key)
        for column, value in zip(self.columns.values(), row, strict=True):
            column.append(value)

    def finish(self, name: str, source: Path, total: int, max_refused: float) -> None:
        """Close the shards; write index, mean image and manifest."""
        for split in list(self._open):
            self._close(split)
        self._check_refused(source, total, max_refused)
        types = {"split": pa.string(), "key": pa.string(), "offset": pa.int64(), "length": pa.int64()}
        table = pa.table({k: pa.array(v, types.get(k, pa.int32())) for k, v in self.columns.items()})
        pq.write_table(table, self.folder / INDEX)
        statistics, mean_image = _statistics(self.sums)
        np.save(self.folder / MEAN_IMAGE, mean_image)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "name": name,
            "classes": self.classes,
            "splits": {
                split: {"samples": sum(s["samples"] for s in shards), "shards": shards}
                for split, shards in self.shards.items()
            },
            "files": {f: hashlib.sha256((self.folder / f).read_bytes()).hexdigest() for f in (INDEX, MEAN_IMAGE)},
            "statistics": statistics,
            "converted": self.converted,
            "refused": self.refused,
        }
        write_json(self.folder / MANIFEST, {**manifest, "fingerprint": fingerprint(manifest)})

    def _close(self, split: str) -> None:
        self.shards[split].append(self._open.pop(split).close())

    def _check_refused(self, source: Path, total: int, max_refused: float) -> None:
        if len(self.refused) > max_refused * total or "train" not in self.shards:
            first = "; ".join(f"{r['file']}: {r['reason']}" for r in self.refused[:3])
            raise UserError(
                f"{len(self.refused)} of {total} files of {source} can't be used, more than the allowed "
                f"{max_refused:.1%} (--max-refused): {first}{'; …' if len(self.refused) > 3 else ''}"
            )
        packed = set(zip(self.columns["split"], self.columns["label"], strict=True))
        for number, label in enumerate(self.classes):
            if ("train", number) not in packed:
                raise UserError(f"no image of class {label!r} under train in {source} can be used")


class _Shard:
    """A tar file that is being written, hashed as it goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = self.samples = 0
        self._file: IO[bytes] = path.open("wb")
        self._digest = hashlib.sha256()

    def add(self, data: bytes, label: int, entry: Entry) -> tuple[int, int]:
        """Write one sample; return the offset and length of its image."""
        stem = f"{self.samples:08d}"
        about = json.dumps({"label": label, "class": entry.label, "key": entry.key}).encode()
        offset = self._member(f"{stem}.jpg", data)
        self._member(f"{stem}.json", about)
        self.samples += 1
        return offset, len(data)

    def close(self) -> dict[str, Any]:
        """End the archive; return the manifest's entry."""
        self._write(b"\0" * 1024)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {
            "file": self.path.name,
            "sha256": self._digest.hexdigest(),
            "bytes": self.bytes,
            "samples": self.samples,
        }

    def _member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        offset = self.bytes
        self._write(data)
        self._write(b"\0" * (-len(data) % 512))
        return offset

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise UserError(
                f"{self.path} can't be written: {error.strerror}; nothing of this dataset is kept"
            ) from None
        self._digest.update(data)
        self.bytes += len(data)


def _audited(
    source: Source, entries: list[Entry], pool: Executor, take_sums: Callable[[PixelSums], None]
) -> Iterator[tuple[Entry, bytes, Audited]]:
    """Yield every entry with its bytes and audit, in order; a few chunks ahead are in the pool."""
    averaged = _averaged(entries)
    pending: deque[tuple[list[Entry], list[bytes], Future[tuple[list[Audited], PixelSums]]]] = deque()
    side: tuple[int, int] | None = None
    known = False
    for chunk, files in _chunks(entries, source.read([e.file for e in entries])):
        if not known:
            sizes = (image_size(f) for e, f in zip(chunk, files, strict=True) if e.split == "train")
            side = next((s for s in sizes if s), None)
            known = side is not None
            side = side if side and max(side) <= SMALL else None
        pending.append((chunk, files, pool.submit(audit_chunk, files, [e.key in averaged for e in chunk], side)))
        if len(pending) > 2 * (getattr(pool, "_max_workers", 1) + 1):
            yield from _finished(pending.popleft(), take_sums)
    while pending:
        yield from _finished(pending.popleft(), take_sums)


def _finished(
    item: tuple[list[Entry], list[bytes], Future[tuple[list[Audited], PixelSums]]],
    take_sums: Callable[[PixelSums], None],
) -> Iterator[tuple[Entry, bytes, Audited]]:
    chunk, files, future = item
    try:
        results, sums = future.result()
    except BrokenProcessPool:
        raise UserError(
            f"a worker died (of too little memory?) between {chunk[0].file.name} and {chunk[-1].file.name}; "
            "use fewer --workers"
        ) from None
    take_sums(sums)
    yield from zip(chunk, files, results, strict=True)


def _chunks(entries: list[Entry], contents: Iterator[bytes]) -> Iterator[tuple[list[Entry], list[bytes]]]:
    chunk: list[Entry] = []
    files: list[bytes] = []
    size = 0
    for entry, data in zip(entries, contents, strict=True):
        chunk.append(entry)
        files.append(data)
        size += len(data)
        if len(chunk) == _CHUNK_IMAGES or size >= _CHUNK_BYTES:
            yield chunk, files
            chunk, files, size = [], [], 0
    if chunk:
        yield chunk, files


def _averaged(entries: list[Entry]) -> set[str]:
    keys = [e.key for e in entries if e.split == "train"]
    if len(keys) <= AVERAGED_IMAGES:
        return set(keys)
    return {keys[i * len(keys) // AVERAGED_IMAGES] for i in range(AVERAGED_IMAGES)}


def _statistics(sums: PixelSums | None) -> tuple[dict[str, Any], Any]:
    """Return the manifest's statistics and the mean image float32 [H, W, 3]."""
    if sums is None or sums.pixels == 0:
        raise UserError("no training image could be read, so there is no mean to subtract")
    mean = sums.rgb / sums.pixels
    covariance = (sums.outer / sums.pixels - np.outer(mean, mean)) / 255**2
    values, vectors = np.linalg.eigh(covariance)
    # a component's sign is arbitrary and differs between libraries; the largest entry is made positive
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), range(3)])
    if sums.image is not None and sums.whole:
        mean_image = (sums.image / sums.images).astype(np.float32)
    else:
        mean_image = np.broadcast_to(mean.astype(np.float32), (*sums.side, 3)).copy()
    statistics = {
        "images": sums.images,
        "mean_rgb": [round(float(m), 6) for m in mean],
        "eigenvalues": [round(float(v), 10) for v in values],
        "color_basis": np.round(vectors * values * 255, 8).tolist(),
    }
    return statistics, mean_image


def _check_disk(folder: Path, entries: list[Entry]) -> None:
    needed = sum(-(-e.file.size // 512) * 512 + _TAR_OVERHEAD for e in entries)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the shards need about {needed / 2**20:,.0f} MiB, but {folder} has {free / 2**20:,.0f} MiB free; "
            "free some, or name another --root"
        )


@contextmanager
def _working_folder(destination: Path) -> Iterator[Path]:
    """Yield an empty folder beside the destination; it is removed at the end unless it was renamed."""
    folder = destination.with_name(f".{destination.name}.staging")
    lock = destination.with_name(f".{destination.name}.lock")
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process is staging {destination.name!r} now; wait for it") from None
        shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


@contextmanager
def _pool(workers: int | None) -> Iterator[Executor]:
    count = workers or os.cpu_count() or 1
    # spawn: a forked copy of a process with threads (Prefect's, DALI's) may hang
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_ignore_interrupt)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
