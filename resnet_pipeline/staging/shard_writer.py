"""Making one shard: read, audit, write. A shard is a work item of its own, for any process on any machine.

A shard is a plain tar: for each sample ``NNNNNNNN.jpg`` (or ``.png``; the original bytes, or the audit's replacement)
and ``NNNNNNNN.json`` (label, class, original name), so that any WebDataset tool reads it. When the shard is in its
place its record follows: what index and manifest say of it. A shard with a record is finished.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import Image

from resnet_pipeline.data.checksums import checksum
from resnet_pipeline.data.image_audit import Audited, PixelSums, audit, centre_crop
from resnet_pipeline.data.image_files import DEFAULT_LIMITS, ImageError, Limits, image_size
from resnet_pipeline.data.manifest import SHARDS, Remark
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing
from resnet_pipeline.parallel import map_ahead
from resnet_pipeline.records import json_key, plain, plain_record, read_record
from resnet_pipeline.settings import surroundings
from resnet_pipeline.sources.archives import read_member
from resnet_pipeline.sources.entries import Entry
from resnet_pipeline.staging.shard_plan import Shard
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.local import LocalStorage

RECORDS = "staging/records"

_AHEAD = 16  # requests to a bucket that are under way at once: each waits some 30 ms, an image decodes in 5
_TICK = 16  # images between two checks whether to continue


@dataclass(frozen=True, kw_only=True)
class Task:
    """A shard, where its samples come from and where it goes.

    ``side`` (height, width) is that of small images of one size, which are averaged as they are; None averages centre
    crops of 224×224. More than ``allowed`` refused images end the work. ``max_value`` is white in images of more than 8
    bits; a file beyond ``limits`` is refused unread. ``audited`` false is for benchmarks: it packs every file that has
    a size in its header, without decoding it.
    """

    shard: Shard
    labels: list[int]
    source: Storage
    destination: Storage
    side: tuple[int, int] | None
    max_shorter_side: int | None = None
    max_value: int | None = None
    limits: Limits = DEFAULT_LIMITS
    allowed: int
    audited: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of a task: ``finished`` is False if it was stopped or refused too many."""

    file: str
    finished: bool
    images: int
    bytes: int
    refused: list[Remark]


Tick = Callable[[int, int, int], bool]
"""Called with the images, bytes and refusals since the last call; returns whether to continue."""


def pack_shard(task: Task, tick: Tick = lambda images, size, refused: True) -> Outcome:
    """Make a task's shard and its record. Raises UserError for what can't be read or written.

    Example: ``pack_shard(task).images``
    """
    record = Record(sums=PixelSums(task.side or (224, 224)))
    try:
        with new_file(task.destination, f"{SHARDS}/{task.shard.file}") as path, path.open("wb", 0) as file:
            read = _fill(task, TarWriter(file), record, tick)
    except _StoppedError as stopped:
        return Outcome(task.shard.file, False, stopped.images, 0, record.refused)
    task.destination.write(record_name(task.shard.file), record.to_bytes())
    return Outcome(task.shard.file, True, len(task.shard.entries), read, record.refused)


def temporary_prefix(destination: Storage) -> str:
    """Return what the names of temporary folders begin with that are made for a destination, on any machine."""
    place = f"{surroundings().aws_endpoint_url} {destination.url}"
    return f"resnet-pipeline-{hashlib.sha256(place.encode()).hexdigest()[:12]}-"


def record_name(shard_file: str) -> str:
    """Return the name of a shard's record in the destination.

    >>> record_name("train-00000.tar")
    'staging/records/train-00000.npz'
    """
    return f"{RECORDS}/{shard_file.removesuffix('.tar')}.npz"


@dataclass(frozen=True, kw_only=True)
class _ShardFacts:
    """What a `Record` holds beside arrays, as the JSON in its file."""

    sha256: str
    size: int = field(metadata=json_key("bytes"))
    resized: int
    refused: tuple[Remark, ...]
    converted: tuple[Remark, ...]


@dataclass(kw_only=True)
class Record:
    """What index and manifest say of a shard.

    ``size`` is its bytes; ``rows`` hold for each packed sample its position in the plan's shard, offset and length in
    the file, width and height, ``checksums`` that of its bytes; ``resized`` is the number of images that were made
    smaller.
    """

    sums: PixelSums
    sha256: str = ""
    size: int = 0
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    refused: list[Remark] = field(default_factory=list)
    converted: list[Remark] = field(default_factory=list)
    resized: int = 0

    def to_bytes(self) -> bytes:
        """Return the record as a file: arrays, and the rest as JSON."""
        facts = _ShardFacts(
            sha256=self.sha256,
            size=self.size,
            resized=self.resized,
            refused=tuple(self.refused),
            converted=tuple(self.converted),
        )
        buffer = io.BytesIO()
        rows = np.array(self.rows, dtype=np.int64).reshape(-1, 5)
        arrays: dict[str, Any] = {"about": np.array(json.dumps(plain(facts))), "rows": rows, **self.sums.to_arrays()}
        if self.checksums:
            arrays["checksums"] = np.array(self.checksums, dtype=np.uint64)
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Return the record of a file; ValueError if it is none, or damaged."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                if damaged := file.testzip():
                    raise ValueError(f"{damaged} does not match its checksum")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                facts = read_record(_ShardFacts, json.loads(str(arrays["about"])))
                return cls(
                    sums=PixelSums.from_arrays(arrays),
                    sha256=facts.sha256,
                    size=facts.size,
                    rows=[tuple(row) for row in arrays["rows"].tolist()],
                    checksums=arrays["checksums"].tolist() if "checksums" in arrays else [],
                    refused=list(facts.refused),
                    converted=list(facts.converted),
                    resized=facts.resized,
                )
        except Exception as error:  # a damaged file makes its readers raise almost anything
            raise ValueError(f"no record of a shard: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a shard says of an image beside it: the number and the name of its class, and its original name."""

    label: int
    class_name: str = field(metadata=json_key("class"))
    key: str


class TarWriter:
    """Writes a tar file of samples and hashes it as it goes; one system call for each sample."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.bytes = self.samples = 0

    @property
    def sha256(self) -> str:
        """The SHA-256 of all that was written."""
        return self._digest.hexdigest()

    def add(self, data: bytes, suffix: str, sample: Sample) -> int:
        """Write one sample, its image and what is known of it; return the image's offset."""
        stem = f"{self.samples:08d}"
        text = json.dumps(plain_record(sample)).encode()
        offset = self.bytes + 512
        self._write(
            _header(f"{stem}.{suffix}", len(data)),
            data,
            b"\0" * (-len(data) % 512) + _header(f"{stem}.json", len(text)) + text + b"\0" * (-len(text) % 512),
        )
        self.samples += 1
        return offset

    def end(self) -> None:
        """Write the end of the archive."""
        self._write(b"\0" * 1024)

    def _write(self, *parts: bytes) -> None:
        for part in parts:
            self._digest.update(part)
        size = sum(map(len, parts))
        written = os.writev(self._file.fileno(), parts)
        if written < size:  # a disk that is nearly full
            rest = memoryview(b"".join(parts))[written:]
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        self.bytes += size


class _StoppedError(Exception):
    """The work was stopped after some images."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images


def _fill(task: Task, tar: TarWriter, record: Record, tick: Tick) -> int:
    """Write all samples of a task and the end of the archive; return the bytes that were read."""
    last = len(task.shard.entries) - 1
    total = images = size = refused = 0
    for position, data in enumerate(_contents(task)):
        before = len(record.refused)
        _pack(task, position, data, tar, record)
        images, size, refused = images + 1, size + len(data or b""), refused + len(record.refused) - before
        if images == _TICK or position == last:
            go_on = tick(images, size, refused)
            total += size
            images = size = refused = 0
            if not go_on or len(record.refused) > task.allowed:
                raise _StoppedError(position + 1)
    tar.end()
    record.sha256, record.size = tar.sha256, tar.bytes
    return total


def _pack(task: Task, position: int, data: bytes | None, tar: TarWriter, record: Record) -> None:
    """Audit one image and write it, or note why not; None is one whose file is too large to be read."""
    entry = task.shard.entries[position]
    name = entry.member.name
    png = name.lower().endswith(".png")
    result, image = _audited(task, entry, data, png, pixels=bool(task.shard.averaged[position]))
    if result.refused or data is None:
        record.refused.append(Remark(name, result.note))
        return
    if result.note:
        record.converted.append(Remark(name, result.note))
    record.resized += result.resized
    if image is not None:
        record.sums.add(np.asarray(image.convert("RGB") if task.side else centre_crop(image)))
    packed = data if result.replacement is None else result.replacement
    sample = Sample(label=task.labels[position], class_name=entry.label, key=entry.key)
    offset = tar.add(packed, "png" if png else "jpg", sample)
    record.rows.append((position, offset, len(packed), result.width, result.height))
    record.checksums.append(checksum(packed))


def _audited(
    task: Task, entry: Entry, data: bytes | None, png: bool, *, pixels: bool
) -> tuple[Audited, Image.Image | None]:
    if data is None:
        return Audited(note=_too_large(task.limits, entry) or "", refused=True), None
    if not task.audited:
        return _unseen(data), None
    return audit(
        data,
        png=png,
        max_shorter_side=task.max_shorter_side,
        limits=task.limits,
        max_value=task.max_value,
        pixels=pixels,
    )


def _too_large(limits: Limits, entry: Entry) -> str | None:
    """Return why an entry's file is too large to be read; None: it is not."""
    try:
        limits.check_bytes(entry.member.size)
    except ImageError as error:
        return str(error)
    return None


def _unseen(data: bytes) -> Audited:
    size = image_size(data)
    return Audited(note="no image format that is known", refused=True) if size is None else Audited(size[1], size[0])


def _contents(task: Task) -> Iterator[bytes | None]:
    """Yield the entries' contents in order, None for what is too large.

    From elsewhere than this machine, several are fetched ahead.
    """

    def content(entry: Entry) -> bytes | None:
        return None if _too_large(task.limits, entry) else read_member(task.source, entry.member)

    if isinstance(task.source, LocalStorage):
        yield from map(content, task.shard.entries)
        return
    with ThreadPoolExecutor(_AHEAD) as pool:
        yield from map_ahead(pool, content, task.shard.entries, _AHEAD + 1)


@contextmanager
def new_file(destination: Storage, name: str) -> Iterator[Path]:
    """Yield a local path; what is written there becomes the destination's file ``name``, once it is whole."""
    try:
        if isinstance(destination, LocalStorage):
            with replacing(destination.root / name) as temporary:
                yield temporary
        else:
            with tempfile.TemporaryDirectory(prefix=temporary_prefix(destination)) as folder:
                path = Path(folder) / PurePosixPath(name).name
                yield path
                destination.write(name, path)
    except OSError as error:
        raise UserError(
            f"{destination.url}/{name} can't be written: {error.strerror or error}; mend that and start again: it goes "
            "on with what is finished"
        ) from None


def _header(name: str, size: int) -> bytes:
    """Return what ``TarInfo.tobuf`` returns for a file of mode 0644, in a fifth of its time."""
    head = name.encode().ljust(100, b"\0") + _OWNER + b"%011o\0" % size + _TIME
    return head + b"%06o\0 " % (_SPACES + sum(head) + sum(_REST)) + _REST


def _header_parts() -> tuple[bytes, bytes, bytes]:
    info = tarfile.TarInfo()
    info.mode = 0o644
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header[100:124], header[136:148], header[156:]


_OWNER, _TIME, _REST = _header_parts()  # around the name, the size and the checksum
_SPACES = 8 * ord(" ")  # the checksum is taken with spaces in its own place
