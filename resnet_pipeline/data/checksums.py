"""A checksum of every sample's bytes, in a file beside the index: what training reads is what staging wrote.

The manifest's SHA-256 of a shard is too much to compute at every start, and a bit that flips later is not seen by it.
The file is not part of the fingerprint: it says nothing of the data that the shards don't, and datasets are older than
it. It names its dataset by the fingerprint, and its pages have checksums of their own.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from resnet_pipeline.storage.base import Storage

CHECKSUMS = "checksums.parquet"
_DATASET = b"dataset"

Checksums = npt.NDArray[np.uint64]


def checksum(data: bytes | npt.NDArray[np.uint8]) -> int:
    """Return the checksum of a sample's encoded bytes: XXH3, 64 bits; it finds damage, and proves no origin.

    >>> checksum(b"an image")
    6303403662279421974
    """
    return xxhash.xxh3_64_intdigest(data if isinstance(data, bytes) else data.data)


def checksums_file(checksums: Mapping[str, Sequence[int] | Checksums], fingerprint: str) -> bytes:
    """Return the file of a dataset's checksums: by split, those of its samples in the order of the index."""
    splits = [pa.repeat(name, len(own)) for name, own in checksums.items()]
    values = [pa.array(own, pa.uint64()) for own in checksums.values()]
    table = pa.table({"split": pa.chunked_array(splits), "xxh3": pa.chunked_array(values)})
    buffer = io.BytesIO()
    table = table.replace_schema_metadata({_DATASET: fingerprint})
    pq.write_table(table, buffer, use_dictionary=["split"], compression="none", write_page_checksum=True)
    return buffer.getvalue()


def table_of(content: io.BytesIO, *, page_checksums: bool = False) -> pa.Table:
    """Return the table of a Parquet file in memory, with its pages' checksums compared if it has any.

    It is read in this thread alone. A thread of Arrow's that still holds a Python object when the program ends aborts
    it: 2 of 60 processes that read such a file and ended, on a busy machine, had status 134.

    Example: ``table_of(io.BytesIO(path.read_bytes())).column_names``
    """
    file = pq.ParquetFile(content, page_checksum_verification=page_checksums, pre_buffer=False)
    return file.read(use_threads=False)


def read_checksums(storage: Storage, fingerprint: str, samples: Mapping[str, int]) -> dict[str, Checksums] | None:
    """Return uint64 [N] for each split; None if the dataset has none, as those that earlier versions staged.

    ``samples`` says how many each split has. A file that another dataset has left there counts as none. Raises
    ValueError, in one line, for one that is damaged, or has another number of samples.
    """
    if storage.stat(CHECKSUMS) is None:
        return None
    content = io.BytesIO(storage.read(CHECKSUMS))
    try:
        table = table_of(content, page_checksums=True)
        if (table.schema.metadata or {}).get(_DATASET) != fingerprint.encode():
            return None
        found = {name: _column(table.filter(pc.equal(table["split"], name))) for name in samples}
        if {name: len(own) for name, own in found.items()} != dict(samples):
            raise ValueError("it has not the index's samples")
    except Exception as error:  # a damaged file makes its readers raise almost anything
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None
    return found


def _column(table: pa.Table) -> Checksums:
    values: Checksums = table.column("xxh3").to_numpy().astype(np.uint64, casting="safe", copy=False)
    return values
