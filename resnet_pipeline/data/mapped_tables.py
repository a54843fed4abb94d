"""The tables of a large dataset in a file that all processes of a machine map: the kernel keeps one copy of it.

An index of 14 million samples takes a gigabyte as Arrow has it in memory, and a node may have dozens of processes that
read it. The first of them writes it once more, as it lies in memory, and the others look at its pages.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa

from resnet_pipeline.files import replacing

MAPPED_FROM = 1_000_000
"""Datasets of so many samples have their tables mapped; a smaller one is read by each process."""


def mapped_tables(path: Path, names: list[str], make: Callable[[], Mapping[str, pa.Table]]) -> dict[str, pa.Table]:
    """Return tables by name, each of a single chunk, from a file; if it is not there, ``make`` gives what is in it.

    One process makes it, while the others wait. Raises OSError if the folder can't be written, and what ``make`` does.

    Example: ``mapped_tables(cache / "0123.arrow", ["train"], lambda: {"train": table})["train"]``
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _write(path, names, make())
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return {name: pa.Table.from_batches([reader.get_batch(number)]) for number, name in enumerate(names)}


def _write(path: Path, names: list[str], tables: Mapping[str, pa.Table]) -> None:
    """Write a batch for each table: a column of a batch is one array, which NumPy can look at as it lies there."""
    with replacing(path) as temporary:
        schema = _wide(tables[names[0]].schema)
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for name in names:
                table = tables[name].cast(schema).combine_chunks()
                batches = table.to_batches()
                batch = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=schema)
                writer.write_batch(batch)


def _wide(schema: pa.Schema) -> pa.Schema:
    """Return the schema with strings of 64-bit offsets: all keys of a split are one array, of more than 2 GiB."""
    return pa.schema([f.with_type(pa.large_string()) if pa.types.is_string(f.type) else f for f in schema])
