"""Where a dataset grows until it is complete, and what is kept of it when staging is interrupted.

On this machine that is a hidden folder beside the destination, which is renamed at the end: a dataset appears in one
piece. In a bucket, where nothing can be renamed, the shards are written to their places and the manifest last: a
dataset without a manifest is none. So there a dataset that is replaced is gone as soon as its successor is begun.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from resnet_pipeline.data.checksums import CHECKSUMS
from resnet_pipeline.data.manifest import INDEX, MANIFEST, MEAN_IMAGE, SHARDS, SOURCE
from resnet_pipeline.data.objects import OBJECTS
from resnet_pipeline.errors import UserError
from resnet_pipeline.names import escaped, hidden, original
from resnet_pipeline.sources.catalogue import Catalogue, Ignored
from resnet_pipeline.sources.entries import Entries, Entry
from resnet_pipeline.sources.members import Member, Zipped
from resnet_pipeline.sources.objects import annotated_of, text_of
from resnet_pipeline.staging.shard_writer import RECORDS, temporary_prefix
from resnet_pipeline.storage.base import HeldError, Storage
from resnet_pipeline.storage.local import LocalStorage

_STAGING = "staging"
LISTING = f"{_STAGING}/listing.parquet"
IDENTITY = f"{_STAGING}/about.json"
LEASE = "staging.lease"
_OWN = (MANIFEST, INDEX, MEAN_IMAGE, CHECKSUMS, OBJECTS, SOURCE)
_HALF_WRITTEN = tuple(f"{folder}." for folder in (f"{SHARDS}/", f"{_STAGING}/", f"{RECORDS}/")) + tuple(
    f".{name}." for name in _OWN
)
"""What the names of temporary files begin with, which a process that was killed leaves."""

_LISTED = ("layout", "address", "classes", "class_words", "md5", "category_ids")
_LEFT_OUT = ("hidden", "ignored")
_LISTING_COLUMNS = [
    *((name, pa.string()) for name in ("name", "file")),
    *((name, pa.int64()) for name in ("offset", "size")),
    *((name, pa.string()) for name in ("split", "label", "below")),
    ("method", pa.int32()),
    *((name, pa.int64()) for name in ("stored", "crc")),
    *((name, pa.string()) for name in ("pieces", "objects")),
]
_ROWS = 2**16  # of a listing that are Python's objects at a time


class StagingArea:
    """The place in a bucket where shards and records go, and a folder of this machine for what is laid out."""

    def __init__(self, destination: Storage, scratch: Path) -> None:
        self.storage, self.scratch = destination, scratch
        self.check_ours: Callable[[], None] = lambda: None
        """Raises UserError if another process has taken the destination over."""

    def keeps(self, identity: bytes) -> bool:
        """Return whether a staging of the same source and options left something."""
        return self.storage.stat(IDENTITY) is not None and self.storage.read(IDENTITY) == identity

    def begin(self, identity: bytes) -> None:
        """Keep what a staging of the same source and options left; remove any other's, and an old dataset."""
        if self.keeps(identity):
            for stored in self.storage.files():
                if stored.name.startswith(_HALF_WRITTEN):
                    self.storage.delete(stored.name)
        else:
            self.drop()
            self.storage.write(IDENTITY, identity)

    def finish(self, shards: set[str]) -> None:
        """Remove what is not of the finished dataset."""
        for stored in [*self.storage.files(f"{_STAGING}/"), *self.storage.files(f"{SHARDS}/")]:
            if stored.name.removeprefix(f"{SHARDS}/") not in shards:
                self.storage.delete(stored.name)

    def check_disk(self, needed: int) -> None:
        """Do nothing: a bucket has no end."""

    def drop(self) -> None:
        """Remove everything."""
        self.storage.delete(MANIFEST)  # first: what follows is of no dataset
        self.finish(set())


class LocalStagingArea(StagingArea):
    """A hidden folder beside the destination."""

    def __init__(self, destination: LocalStorage) -> None:
        self._final = destination.root
        self._folder = destination.root.with_name(f".{destination.root.name}.staging")
        self._old = destination.root.with_name(f".{destination.root.name}.old")
        super().__init__(LocalStorage(self._folder), self._folder / "spool")

    def begin(self, identity: bytes) -> None:
        """Keep what a staging of the same source and options left; remove any other's."""
        if self._old.exists() and not self._final.exists():  # killed between two renames
            self._old.rename(self._final)
        super().begin(identity)

    def finish(self, shards: set[str]) -> None:
        """Remove what is not of the finished dataset, and give it its name."""
        super().finish(shards)
        shutil.rmtree(self._folder / _STAGING)
        shutil.rmtree(self.scratch, ignore_errors=True)
        shutil.rmtree(self._old, ignore_errors=True)
        if self._final.exists():
            self._final.rename(self._old)
        self._folder.rename(self._final)
        shutil.rmtree(self._old, ignore_errors=True)

    def drop(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def check_disk(self, needed: int) -> None:
        """Raise UserError if the disk has less than ``needed`` bytes free."""
        free = shutil.disk_usage(self._final.parent).free
        if needed > free:
            raise UserError(
                f"the shards need about {needed / 2**20:,.0f} MiB, but {self._final.parent} has "
                f"{free / 2**20:,.0f} MiB free; free some, or name another --root"
            )


def check_free(destination: Storage, *, replace: bool) -> None:
    """Raise UserError if a dataset is there that is not to be replaced, or a folder with other files than a dataset's.

    A folder gives way to the dataset as a whole: if it held the source, say, that would be gone.
    """
    if destination.stat(MANIFEST) is not None and not replace:
        raise UserError(f"{destination.url} exists; choose another name or replace it")
    if not isinstance(destination, LocalStorage):
        return
    names = (stored.name for stored in destination.files())
    others = [
        name
        for name in names
        if name not in _OWN and not name.startswith(f"{SHARDS}/") and ("/" in name or not hidden(name))
    ]
    if others:
        raise UserError(
            f"{destination.url} holds files that are no part of a dataset ({escaped(others[0])}"
            f"{f' and {len(others) - 1:,} more' if others[1:] else ''}) and would be lost; choose another name, or "
            "move them"
        )


@contextmanager
def staging_area(destination: Storage) -> Iterator[StagingArea]:
    """Yield the destination's staging area; no other process can have it at the same time.

    Raises UserError, which says who, if another process is staging there.
    """
    name, place, lock = destination.url, destination, LEASE
    if isinstance(destination, LocalStorage):
        name = destination.root.name
        place, lock = LocalStorage(destination.root.parent), f".{name}.lock"
    with ExitStack() as stack:
        try:
            check = stack.enter_context(place.lease(lock))
        except HeldError as error:
            raise UserError(f"another process is staging {name!r} now; wait for it ({error})") from None
        if isinstance(destination, LocalStorage):
            area: StagingArea = LocalStagingArea(destination)
            stack.callback(shutil.rmtree, area.scratch, ignore_errors=True)
        else:
            area = StagingArea(destination, stack.enter_context(_scratch(destination)) / "spool")
        area.check_ours = check
        yield area


@contextmanager
def _scratch(destination: Storage) -> Iterator[Path]:
    """Yield a new folder of this machine for a destination elsewhere; remove what killed stagings left of theirs."""
    prefix = temporary_prefix(destination)
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def listing_of(catalogue: Catalogue) -> bytes:
    """Return a Parquet file of a catalogue whose members each have a place of their own.

    Started again, a staging need not list, nor hash, hundreds of gigabytes once more.
    """
    left_out = {kind: [asdict(item) for item in getattr(catalogue, kind)] for kind in _LEFT_OUT}
    facts = json.dumps(
        {name: getattr(catalogue, name) for name in _LISTED} | left_out | {"annotated": catalogue.objects is not None}
    )
    schema = pa.schema(_LISTING_COLUMNS).with_metadata({"catalogue": facts})
    buffer = io.BytesIO()
    # with checksums: a listing that was damaged would name other places of the source
    with pq.ParquetWriter(buffer, schema, write_page_checksum=True) as writer:
        for start in range(0, len(catalogue.entries), _ROWS):
            rows = [_row_of(catalogue, entry) for entry in catalogue.entries[start : start + _ROWS]]
            columns = zip(zip(*rows, strict=True), schema, strict=True)
            writer.write_table(pa.table([pa.array(values, field.type) for values, field in columns], schema))
    return buffer.getvalue()


def _row_of(catalogue: Catalogue, entry: Entry) -> tuple[Any, ...]:
    member = entry.member
    zipped = member.zipped
    return (
        member.name,
        escaped(member.file),
        member.offset,
        member.size,
        entry.split,
        entry.label,
        entry.below,
        *((zipped.method, zipped.stored, zipped.crc) if zipped else (None, None, None)),
        None if member.pieces is None else json.dumps(member.pieces),
        _text(catalogue, member),
    )


def catalogue_of(data: bytes, storage: Storage) -> Catalogue:
    """Return the catalogue of a listing; its members' files lie in ``storage``. ValueError if it is damaged."""
    try:
        return _catalogue_of(data, storage)
    except Exception as error:  # a damaged file makes its readers raise almost anything
        raise ValueError(f"no listing of a source: {error}") from None


def _catalogue_of(data: bytes, storage: Storage) -> Catalogue:
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True, pre_buffer=False)
    entries, objects = Entries(), {}
    for batch in file.iter_batches(_ROWS, use_threads=False):
        columns = [column.to_pylist() for column in batch.columns]
        for name, path, offset, size, split, label, below, method, stored, crc, pieces, said in zip(
            *columns, strict=True
        ):
            zipped = None if method is None else Zipped(method, stored, crc)
            parts = None if pieces is None else tuple((at, length) for at, length in json.loads(pieces))
            entries.append(Entry(Member(name, original(path), offset, size, zipped, parts), split, label, below))
            if said is not None:
                objects[name] = annotated_of(said)
    facts = json.loads(file.schema_arrow.metadata[b"catalogue"])
    facts |= {kind: [Ignored(**item) for item in facts[kind]] for kind in _LEFT_OUT}
    return Catalogue(storage=storage, entries=entries, objects=objects if facts.pop("annotated") else None, **facts)


def _text(catalogue: Catalogue, member: Member) -> str | None:
    said = (catalogue.objects or {}).get(member.name)
    return None if said is None else text_of(said)
