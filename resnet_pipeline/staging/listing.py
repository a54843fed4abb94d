"""A catalogue as a file: started again, a staging need not list, nor hash, hundreds of gigabytes once more."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from resnet_pipeline.sources.archives import Member, Zipped
from resnet_pipeline.sources.catalogue import Catalogue, Entry
from resnet_pipeline.storage.base import Storage

_ABOUT = ("layout", "address", "classes", "class_words", "md5")


def to_bytes(catalogue: Catalogue) -> bytes:
    """Return a Parquet file of a catalogue whose members each have a place of their own."""
    members = [entry.member for entry in catalogue.entries]
    columns: dict[str, Any] = {
        "name": [m.name for m in members],
        "file": [m.file for m in members],
        "offset": [m.offset for m in members],
        "size": [m.size for m in members],
        "split": [entry.split for entry in catalogue.entries],
        "label": [entry.label for entry in catalogue.entries],
        "method": pa.array([m.zipped.method if m.zipped else None for m in members], pa.int32()),
        "stored": pa.array([m.zipped.stored if m.zipped else None for m in members], pa.int64()),
        "crc": pa.array([m.zipped.crc if m.zipped else None for m in members], pa.int64()),
    }
    about = json.dumps({name: getattr(catalogue, name) for name in _ABOUT})
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata({"catalogue": about}), buffer)
    return buffer.getvalue()


def from_bytes(data: bytes, storage: Storage) -> Catalogue:
    """Return the catalogue of a file; its members' files lie in ``storage``."""
    table = pq.read_table(io.BytesIO(data))
    columns = [table.column(name).to_pylist() for name in table.column_names]
    entries = []
    for name, file, offset, size, split, label, method, stored, crc in zip(*columns, strict=True):
        zipped = None if method is None else Zipped(method, stored, crc)
        entries.append(Entry(Member(name, file, offset, size, zipped), split, label))
    about = json.loads(table.schema.metadata[b"catalogue"])
    return Catalogue(storage=storage, entries=entries, **about)
