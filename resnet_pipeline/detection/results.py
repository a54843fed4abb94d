"""What a detector found in a split's images, kept as a file of COCO's results: every figure is computed from it.

The file is a list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score", "segmentation"}``, as COCO's
server takes it. Numbers of images and categories are the source's own. Beside it stands what it is of.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing, sha256_of, write_json
from resnet_pipeline.records import RecordError, load_record, plain

_log = logging.getLogger(__name__)

_FACTS = ".facts.json"  # instead of a result file's .json

RunLengths = dict[str, Any]
"""A mask as COCO's compressed run lengths: ``size`` [height, width] and ``counts``, text."""


@dataclass(frozen=True, kw_only=True)
class ImageFound:
    """What was found in an image, best first or in any order.

    ``box`` is float64 [K, 4] (left, top, right, bottom) in pixels of the stored image, ``score`` float64 [K], ``label``
    int64 [K], places in the dataset's classes; ``mask`` has run lengths for each if the detector has masks.
    """

    box: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]
    mask: Sequence[RunLengths] | None = None

    def __len__(self) -> int:
        return len(self.score)


Find = Callable[[Dataset, str, npt.NDArray[np.int64], Callable[[int], None]], list[ImageFound]]
"""Finds objects in all images of a dataset's split, on this process's device.

It is also given the images' places int64 [N] among all that are tested, and hears of the images of each batch. It can
be pickled, for Ray's workers.
"""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What was found in each image of a split, by the image's place in it."""

    split: str
    found: Sequence[ImageFound] = field(repr=False)

    def coco(self, dataset: Dataset) -> list[dict[str, Any]]:
        """Return the results in COCO's form."""
        images, categories = _numbers(dataset, self.split)
        return [
            {
                "image_id": int(images[sample]),
                "category_id": categories[int(found.label[row])],
                "bbox": _corner_and_size(found.box[row]),
                "score": float(found.score[row]),
                **({} if found.mask is None else {"segmentation": found.mask[row]}),
            }
            for sample, found in enumerate(self.found)
            for row in range(len(found))
        ]

    def write(self, dataset: Dataset, path: Path) -> Path:
        """Write the file, atomically, and return its path; UserError if it can't be written."""
        try:
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(self.coco(dataset)), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror or error}") from None
        return path


def read_results(path: Path, dataset: Dataset, split: str) -> Results:
    """Return the results of a file, of any detector.

    Raises UserError, naming the file and the entry, if it can't be read, or is of images or categories that the split
    does not have.

    Example: ``read_results(Path("results.json"), dataset, "val").found[0].box``
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from None
    if not isinstance(entries, list):
        raise UserError(f"{path} is no file of COCO's results, which is a list of what was found")
    images, categories = _numbers(dataset, split)
    places = {int(number): place for place, number in enumerate(images)}
    labels = {number: label for label, number in enumerate(categories)}
    rows: list[list[_Row]] = [[] for _ in images]
    for number, entry in enumerate(entries, 1):
        where = f"{path}: entry {number}"
        row = _row(entry, where)
        if row.image not in places:
            raise UserError(f"{where} names image {row.image}, which split {split} of {dataset.name} does not have")
        if row.category not in labels:
            raise UserError(f"{where} names category {row.category}, which {dataset.name} does not have")
        rows[places[row.image]].append(row)
    return Results(split=split, found=[_found(own, labels) for own in rows])


@dataclass(frozen=True, kw_only=True)
class ResultsFacts:
    """What a kept result file is of, in a file beside it; ``sha256`` is the result file's, compared by who reads it.

    ``members`` are the weights of an ensemble's detectors, in its order; none for a single one.
    """

    weights_sha256: str
    dataset_fingerprint: str
    split: str
    protocol: str
    seconds: float
    sha256: str = ""
    members: tuple[str, ...] = ()

    def file(self, results: Path) -> Path:
        """Return where it is kept."""
        return results.with_suffix(_FACTS)

    def keep(self, results: Path) -> ResultsFacts:
        """Write it beside the result file that is there, with that one's SHA-256, and return it."""
        facts = replace(self, sha256=sha256_of(results))
        write_json(self.file(results), plain(facts))
        return facts


def facts_in(folder: Path) -> list[tuple[Path, ResultsFacts]]:
    """Return the result files of a folder with what they are of, by name; what is damaged, which is logged, is not.

    Example: ``facts_in(results_path(workspace, fingerprint, "val", protocol, digest).parent)``
    """
    found = []
    for file in sorted(folder.glob(f"*{_FACTS}")):
        try:
            found.append((file.with_name(file.name.removesuffix(_FACTS) + ".json"), load_record(ResultsFacts, file)))
        except (OSError, RecordError) as error:
            _log.warning("%s: left out", error)
    return found


def read_kept_results(path: Path, wanted: ResultsFacts, dataset: Dataset) -> tuple[Results, ResultsFacts] | None:
    """Return what is kept at a path, if it is what is wanted; None, which is logged, if it is damaged or of others.

    Example: ``read_kept_results(path, facts, dataset)``
    """
    if not path.exists():
        return None
    try:
        facts = load_record(ResultsFacts, wanted.file(path))
        if replace(facts, seconds=wanted.seconds, sha256=wanted.sha256) != wanted:
            raise UserError(f"{path} is of other weights or another dataset")
        if facts.sha256 != sha256_of(path):
            raise UserError(f"{path} is not what was written: its SHA-256 differs")
        return read_results(path, dataset, wanted.split), facts
    except (OSError, RecordError, UserError) as error:
        _log.warning("%s: computed again", error)
        return None


@dataclass(frozen=True)
class _Row:
    image: int
    category: int
    box: tuple[float, float, float, float]
    score: float
    mask: RunLengths | None


def _row(entry: Any, where: str) -> _Row:
    try:
        left, top, width, height = map(float, entry["bbox"])
        row = _Row(
            int(entry["image_id"]),
            int(entry["category_id"]),
            (left, top, left + width, top + height),
            float(entry["score"]),
            entry.get("segmentation"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where} can't be read: {what}") from None
    if not all(map(math.isfinite, (*row.box, row.score))):
        raise UserError(f"{where} has a box or a score that is no number")
    return row


def _found(rows: Iterable[_Row], labels: Mapping[int, int]) -> ImageFound:
    own = list(rows)
    masks = [row.mask for row in own if row.mask is not None]
    return ImageFound(
        box=np.array([row.box for row in own], np.float64).reshape(-1, 4),
        score=np.array([row.score for row in own], np.float64),
        label=np.array([labels[row.category] for row in own], np.int64),
        mask=masks if masks and len(masks) == len(own) else None,
    )


def _numbers(dataset: Dataset, split: str) -> tuple[npt.NDArray[np.int64], Sequence[int]]:
    """Return the images' and the categories' numbers in COCO's files."""
    objects, facts = dataset.splits[split].objects, dataset.manifest.objects
    if objects is None or facts is None:
        raise UserError(f"split {split} of dataset {dataset.name!r} has no annotated objects")
    return objects.images, facts.categories


def _corner_and_size(box: npt.NDArray[np.float64]) -> list[float]:
    left, top, right, bottom = (float(value) for value in box)
    return [left, top, right - left, bottom - top]
