"""The objects of a dataset's images: boxes, classes and masks, in a file beside the index.

A row of the file is an image, in the order of the index; its columns are lists, an item for each object. Boxes are
(left, top, right, bottom) in pixels of the stored image, from its upper left corner on (`sources.objects`).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from resnet_pipeline.data.checksums import table_of
from resnet_pipeline.data.order import Int64

OBJECTS = "objects.parquet"

_LISTS: Mapping[str, pa.DataType] = {
    "box": pa.float64(),  # four for each object
    "label": pa.int32(),
    "number": pa.int64(),
    "crowd": pa.bool_(),
    "difficult": pa.bool_(),
    "area": pa.float64(),
    "mask": pa.string(),
}


@dataclass(frozen=True, kw_only=True)
class ImageObjects:
    """The objects of an image.

    ``box`` is float64 [K, 4]; ``label`` int32 [K], places in the dataset's classes; ``number`` int64 [K], the objects'
    own in the source; ``crowd`` and ``difficult`` bool [K]; ``area`` float64 [K] in pixels; ``mask`` has COCO's JSON
    for each, empty for none. ``image`` is the image's number in COCO's result files.
    """

    image: int
    box: npt.NDArray[np.float64]
    label: npt.NDArray[np.int32]
    number: Int64
    crowd: npt.NDArray[np.bool_]
    difficult: npt.NDArray[np.bool_]
    area: npt.NDArray[np.float64]
    mask: list[str]

    def __len__(self) -> int:
        return len(self.label)

    def segmentation(self, row: int) -> Any:
        """Return an object's mask as COCO's JSON has it: polygons or run lengths; None for none."""
        return json.loads(self.mask[row]) if self.mask[row] else None


class Objects:
    """The objects of a split's images, by the images' places in the split."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        self.images: Int64 = self._table.column("image").to_numpy().astype(np.int64)

    @cached_property
    def _first(self) -> Int64:
        """The place of each image's first object, and the number of all: int64 [N + 1]."""
        counts = pc.list_value_length(self._table.column("label")).to_numpy().astype(np.int64)
        first: Int64 = np.concatenate([[0], np.cumsum(counts)])
        return first

    @cached_property
    def _flat(self) -> dict[str, Any]:
        columns = {name: pc.list_flatten(self._table.column(name)) for name in _LISTS}
        flat: dict[str, Any] = {
            name: column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
            for name, column in columns.items()
            if name != "mask"
        }
        return {**flat, "box": flat["box"].reshape(-1, 4), "mask": columns["mask"]}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def count(self) -> int:
        """The number of all objects."""
        return int(self._first[-1])

    def of(self, sample: int) -> ImageObjects:
        """Return an image's objects.

        Example: ``dataset.splits["train"].objects.of(0).box``
        """
        rows = slice(int(self._first[sample]), int(self._first[sample + 1]))
        flat = {name: column[rows] for name, column in self._flat.items()}
        return ImageObjects(image=int(self.images[sample]), **{**flat, "mask": flat["mask"].to_pylist()})

    def per_class(self, classes: int) -> Int64:
        """Return how many objects each class has, int64 [classes]."""
        counts: Int64 = np.bincount(self._flat["label"], minlength=classes)
        return counts

    def part(self, samples: Int64) -> Objects:
        """Return those of some of the images, int64 [N]."""
        return Objects(self._table.take(samples))


def objects_file(rows: Sequence[tuple[str, ImageObjects]]) -> bytes:
    """Return the file of a dataset's objects: for each image, in the index's order, its split and its objects."""
    found = [objects for _, objects in rows]
    columns: dict[str, Any] = {
        "split": pa.array([split for split, _ in rows], pa.string()),
        "image": pa.array([each.image for each in found], pa.int64()),
    }
    for name, kind in _LISTS.items():
        values = [getattr(each, name) for each in found]
        flat = [value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value for value in values]
        columns[name] = pa.array(flat, pa.list_(kind))
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def read_objects(content: io.BytesIO) -> dict[str, Objects]:
    """Return the objects of each split.

    Example: ``read_objects(io.BytesIO(path.read_bytes()))["train"].count``
    """
    table = table_of(content)
    splits = pc.unique(table["split"]).to_pylist()
    return {split: Objects(table.filter(pc.equal(table["split"], split))) for split in splits}
