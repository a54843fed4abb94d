"""The index, written as the shards' records come: no more than a row group of it is in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 2**20
"""Of a row group: as many as PyArrow takes by itself, so that the file is the one that it writes of the whole table."""

_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        *((name, pa.int32()) for name in ("width", "height", "label")),
        ("key", pa.string()),
    ]
)


class IndexWriter:
    """Writes ``index.parquet``, a context manager; the file is whole when it ends.

    Example: ``with IndexWriter(path) as index: index.add("train", 0, rows, labels=labels, keys=keys)``
    """

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, _SCHEMA)
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def add(
        self, split: str, shard: int, rows: npt.NDArray[np.int64], *, labels: Sequence[int], keys: Sequence[str]
    ) -> None:
        """Add the samples of a shard by its number; a row of int64 [N, 4] is offset, length, width and height."""
        count = len(rows)
        offset, length, width, height = rows.T
        columns = [
            pa.repeat(split, count),
            np.full(count, shard),
            *(offset, length, width, height),
            np.asarray(labels),
            pa.array(keys, pa.string()),
        ]
        arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        self._waiting.append(pa.Table.from_arrays(arrays, schema=_SCHEMA))
        self._rows += count
        while self._rows >= ROWS:
            self._write(ROWS)

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._rows:
            self._write(self._rows)
        self._writer.close()

    def _write(self, count: int) -> None:
        table = pa.concat_tables(self._waiting)
        self._writer.write_table(table.slice(0, count).combine_chunks())
        self._rows -= count
        self._waiting = [table.slice(count)] if self._rows else []
