"""A dataset's small files beside its shards: read, compared with the manifest, and mapped if they are large."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from resnet_pipeline.data.checksums import CHECKSUMS, Checksums, read_checksums, table_of
from resnet_pipeline.data.manifest import INDEX, DamagedDatasetError, Manifest
from resnet_pipeline.data.mapped_tables import mapped_tables
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.cache import Cache, CacheFolder, Wanted

NUMBERS: Mapping[str, Any] = {
    "label": np.int64, "width": np.int32, "height": np.int32, "shard": np.int64, "offset": np.int64, "length": np.int64
}  # fmt: skip
"""The index's numbers, as a split has them."""

T = TypeVar("T")


def content_of(storage: Storage, name: str, sha256: str, cache: CacheFolder | None) -> BytesIO:
    """Return a small file's verified content; it is kept in the cache if there is one."""
    address = f"{storage.url}/{name}"
    stored = storage.stat(name)
    if stored is None:
        raise DamagedDatasetError(f"{address} is missing; stage the dataset again")
    if cache is not None:
        user, wanted = Cache(cache), Wanted(name, stored.size, sha256)
        path = user.hold(storage, wanted)
        assert path is not None  # without a condition it comes or raises
        content = path.read_bytes()
        user.release(wanted)
    else:
        content = storage.read(name)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamagedDatasetError(f"{address} does not match its checksum in the manifest; stage the dataset again")
    return BytesIO(content)


def index_of(
    storage: Storage, manifest: Manifest, cache: CacheFolder | None, kept: Path | None
) -> Mapping[str, pa.Table]:
    """Return the index of each split, mapped from the folder ``kept`` if there is one that can be written."""

    def read() -> dict[str, pa.Table]:
        content = content_of(storage, INDEX, manifest.files[INDEX], cache)
        table = parsed(storage, INDEX, lambda: table_of(content))
        return {name: table.filter(pc.equal(table["split"], name)) for name in manifest.splits}

    def read_as_used() -> dict[str, pa.Table]:
        return {name: _as_used(table) for name, table in read().items()}

    if kept is not None:
        with suppress(OSError):
            return mapped_tables(kept / f"{manifest.files[INDEX]}.arrow", list(manifest.splits), read_as_used)
    return read()


def _as_used(table: pa.Table) -> pa.Table:
    """Return an index's table with its numbers as a split has them, and its keys."""
    numbers = {name: pa.array(column(table, name, kind)) for name, kind in NUMBERS.items()}
    return pa.table({**numbers, "key": table.column("key")})


def checksums_of(storage: Storage, manifest: Manifest, kept: Path | None) -> dict[str, Checksums] | None:
    """Return the checksums of each split's samples, uint64 [N], mapped as the index is; None if there are none."""
    samples = {name: split.samples for name, split in manifest.splits.items()}

    def read() -> dict[str, Checksums] | None:
        try:
            return read_checksums(storage, manifest.fingerprint, samples)
        except ValueError as error:
            raise DamagedDatasetError(
                f"{storage.url}/{CHECKSUMS} is damaged ({error}); remove it: "
                "`resnet-pipeline data verify` makes it anew"
            ) from None

    if kept is None or storage.stat(CHECKSUMS) is None:
        return read()
    file = kept / f"{manifest.fingerprint}-checksums.arrow"
    found = None if file.exists() else read()
    if found is None and not file.exists():
        return None
    tables = {name: pa.table({"xxh3": own}) for name, own in (found or {}).items()}
    with suppress(OSError):
        mapped = mapped_tables(file, list(samples), lambda: tables)
        return {name: column(table, "xxh3", np.uint64) for name, table in mapped.items()}
    return found


def parsed(storage: Storage, name: str, parse: Callable[[], T]) -> T:
    """Return what ``parse`` makes of a small file; DamagedDatasetError, naming it, if it makes nothing of it."""
    try:
        return parse()
    except Exception as error:  # as staging wrote it, by its hash, but not in this version's form
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedDatasetError(f"{storage.url}/{name} can't be read ({reason}); stage the dataset again") from None


def column(table: pa.Table, name: str, dtype: Any) -> npt.NDArray[Any]:
    """Return a column's numbers [N], where they lie if the type is theirs and they are one array."""
    values: npt.NDArray[Any] = table.column(name).to_numpy().astype(dtype, copy=False)
    return values
