"""A staged dataset: its manifest, its index, and byte views onto its memory-mapped shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resnet_pipeline.errors import UserError

FORMAT = 2
MANIFEST, INDEX, SOURCE, MEAN_IMAGE = "manifest.json", "index.parquet", "source.json", "mean_image.npy"


@dataclass(frozen=True)
class Statistics:
    """Of the training images, in 0..255 units: ``mean_rgb`` float32 [3], ``mean_image`` float32 [H, W, 3].

    ``color_basis`` float64 [3, 3]: column i is a principal component of the RGB values times its eigenvalue, for
    AlexNet's colour noise. The eigenvalue is that of values in 0..1 (fb.resnet.torch's reading of the formula, which
    is not free of units), the product is scaled back to 0..255.
    """

    mean_rgb: npt.NDArray[np.float32]
    mean_image: npt.NDArray[np.float32]
    color_basis: npt.NDArray[np.float64]


class Split:
    """The samples of one split: columns of the index, and their encoded bytes."""

    def __init__(self, folder: Path, shards: Sequence[str], table: pa.Table) -> None:
        self._folder, self.shards, self._table = folder, list(shards), table
        self.labels = _column(table, "label", np.int64)
        self.width = _column(table, "width", np.int32)
        self.height = _column(table, "height", np.int32)
        self._shard = _column(table, "shard", np.int32)
        self._offset = _column(table, "offset", np.int64)
        self._length = _column(table, "length", np.int64)
        self._maps: dict[int, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def keys(self) -> list[str]:
        """The samples' original names."""
        keys: list[str] = self._table.column("key").to_pylist()
        return keys

    def shard_of(self, sample: int) -> str:
        """Return the name of the shard that holds a sample."""
        return self.shards[int(self._shard[sample])]

    def encoded(self, sample: int) -> npt.NDArray[np.uint8]:
        """Return a read-only view of a sample's encoded bytes in its memory-mapped shard."""
        number = int(self._shard[sample])
        mapped = self._maps.get(number)
        if mapped is None:
            path = self._folder / "shards" / self.shards[number]
            try:
                # a plain array over the mapping: slicing a memmap object costs several times as much
                mapped = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
            except (OSError, ValueError) as error:
                raise UserError(f"shard {path} can't be read ({error}); stage the dataset again") from None
            self._maps[number] = mapped
        start = int(self._offset[sample])
        return mapped[start : start + int(self._length[sample])]


class Dataset:
    """A staged dataset in a folder."""

    def __init__(self, path: Path, manifest: dict[str, Any], splits: dict[str, Split], statistics: Statistics) -> None:
        self.path, self.manifest, self.splits, self.statistics = path, manifest, splits, statistics
        self.name: str = manifest["name"]
        self.classes: list[str] = manifest["classes"]
        self.fingerprint: str = manifest["fingerprint"]

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Open the dataset of a folder; UserError where it is missing or its index or manifest are damaged."""
        try:
            manifest = json.loads((path / MANIFEST).read_text())
        except FileNotFoundError:
            names = sorted(p.parent.name for p in path.parent.glob(f"*/{MANIFEST}"))
            known = f"staged are: {', '.join(names)}" if names else "none is staged"
            raise UserError(
                f"no dataset {path.name!r} under {path.parent} ({known}); stage it with: "
                f"resnet-pipeline stage --source FOLDER-OR-ARCHIVE --name {path.name}"
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(f"{path / MANIFEST} is damaged ({error}); stage the dataset again") from None
        if manifest.get("format") != FORMAT or manifest.get("fingerprint") != fingerprint(manifest):
            raise UserError(f"{path / MANIFEST} was changed, or another version wrote it; stage the dataset again")
        for name in (INDEX, MEAN_IMAGE):
            _verify(path / name, manifest["files"][name])
        table = pq.read_table(path / INDEX)
        splits = {
            name: Split(path, [s["file"] for s in split["shards"]], table.filter(pc.equal(table["split"], name)))
            for name, split in manifest["splits"].items()
        }
        statistics = Statistics(
            mean_rgb=np.array(manifest["statistics"]["mean_rgb"], dtype=np.float32),
            mean_image=np.load(path / MEAN_IMAGE),
            color_basis=np.array(manifest["statistics"]["color_basis"], dtype=np.float64),
        )
        return cls(path, manifest, splits, statistics)

    @property
    def eval_split(self) -> str:
        """``val`` where there is one, else ``test``; UserError where there is neither."""
        for name in ("val", "test"):
            if name in self.splits:
                return name
        raise UserError(f"dataset {self.name!r} has neither a val nor a test split; stage it again with one")

    @property
    def source_fingerprint(self) -> str | None:
        """What the source's files looked like when they were staged (``shards.source_fingerprint``)."""
        try:
            value: str = json.loads((self.path / SOURCE).read_text())["fingerprint"]
        except (OSError, ValueError, KeyError):
            return None
        return value


def fingerprint(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's content; the dataset's name and the fingerprint itself do not count."""
    content = {key: value for key, value in manifest.items() if key not in ("name", "fingerprint")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _verify(path: Path, digest: str) -> None:
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); stage the dataset again") from None
    if found != digest:
        raise UserError(f"{path} does not match its checksum in the manifest; stage the dataset again")


def _column(table: pa.Table, name: str, dtype: Any) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table.column(name).to_numpy().astype(dtype, copy=False)
    return values
