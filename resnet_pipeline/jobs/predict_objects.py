"""The prediction job of detectors and localisers: boxes in every image of a folder, as a table, and as pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from resnet_pipeline.adapters.mlflow.registry import fetch_classifier
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.data.image_files import Limits, open_image
from resnet_pipeline.detection.named_classes import ClassNamer
from resnet_pipeline.detection.results import ImageFound
from resnet_pipeline.detection.trained import load_detector
from resnet_pipeline.detection.trained_localiser import load_box_giver
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.predictor import Image
from resnet_pipeline.files import check_writable, replacing
from resnet_pipeline.jobs.pictures import shown_objects
from resnet_pipeline.jobs.predict import (
    ENDINGS,
    FolderPredictions,
    checked_batches,
    files_of,
    named_members,
    write_table,
)
from resnet_pipeline.jobs.references import folder_of, parse
from resnet_pipeline.jobs.tasks import named_task
from resnet_pipeline.progress import progress
from resnet_pipeline.report.detections import Picture, drawn
from resnet_pipeline.workspace import Workspace

LEAST_SCORE = 0.5
"""Below this score nothing is written."""
_SIDE = 800  # of a picture, in pixels
_COLUMNS = {
    "file": pa.string(), "label": pa.string(), "words": pa.string(), "score": pa.float64(), "left": pa.float64(),
    "top": pa.float64(), "right": pa.float64(), "bottom": pa.float64(), "mask": pa.string(), "error": pa.string(),
}  # fmt: skip


def predict_objects(
    workspace: Workspace,
    reference: str,
    folder: Path,
    output: Path,
    *,
    least_score: float = LEAST_SCORE,
    pictures: Path | None = None,
    classes: Sequence[str] = (),
    classifier: str | None = None,
) -> FolderPredictions:
    """Write the objects of every image below a folder (or of one file) to a CSV, Parquet or JSON file, a row for each.

    An image in which nothing is found has a row without an object, a file that can't be decoded one with the reason.
    ``pictures`` is a folder for a PNG of each image. A localiser gives a box, whatever its score, to each of
    ``classes`` or, where none is named, of the likeliest of a ``classifier``, by default its own. Raises UserError as
    `predict.predict_folder` does.

    Example: ``predict_objects(Workspace.of(), "scenes-maskrcnn-resnet8-c4", Path("images"), Path("found.csv")).images``
    """
    if output.suffix not in ENDINGS:
        raise UserError(f"{output} must end in one of {', '.join(ENDINGS)}")
    files = files_of(folder, output)
    finder = _finder(workspace, reference, least_score, classes, classifier)
    check_writable(output)
    rows: list[dict[str, Any]] = []
    broken: list[tuple[str, str]] = []
    images = 0
    with progress(f"finding objects in {folder.name}", total=len(files)) as bar:
        for batch, decoded in checked_batches(files, Limits.of_settings()):
            good = [image for image in decoded if isinstance(image, Image)]
            found = iter(finder.find(good) if good else ())
            for (name, _), image in zip(batch, decoded, strict=True):
                if isinstance(image, str):
                    broken.append((name, image))
                    continue
                images += 1
                own = next(found)
                rows += _rows(name, own, finder)
                if pictures is not None:
                    _draw(image, own, finder, pictures / f"{name}.png")
            bar.advance(len(batch), detail=f"{len(broken)} broken")
    if not images:
        raise UserError(f"none of the {len(files):,} files of {folder} is an image; {broken[0][0]}: {broken[0][1]}")
    rows += [{"file": name, "error": reason} for name, reason in broken]
    write_table(pa.table({n: pa.array([row.get(n) for row in rows], kind) for n, kind in _COLUMNS.items()}), output)
    return FolderPredictions(path=output, images=images, broken=broken)


@dataclass(frozen=True)
class _Finder:
    """What finds boxes in images, and what its labels mean."""

    find: Callable[[list[Image]], list[ImageFound]]
    classes: Sequence[str]
    class_words: Sequence[str]


def _finder(
    workspace: Workspace, reference: str, least_score: float, classes: Sequence[str], classifier: str | None
) -> _Finder:
    device = local_device()
    with folder_of(workspace, parse(workspace, reference)) as folder:
        if named_task(workspace, reference) == "detection":
            if classes or classifier:
                raise UserError(f"{reference} is a detector, which looks for all of its classes: leave --class out")
            detector = load_detector(folder)
            find = partial(detector.find, device=device, least_score=least_score)
            return _Finder(find, detector.classes, detector.class_words)
        localiser = load_box_giver(folder)
        own = fetch_classifier(Tracking(workspace), folder) if classifier is None else []
    namer = ClassNamer(localiser, own if classifier is None else named_members(workspace, classifier))

    def located(images: list[Image]) -> list[ImageFound]:
        return localiser.find(images, namer.classes(images, [classes] * len(images)))

    return _Finder(located, localiser.classes, localiser.class_words)


def _rows(name: str, found: ImageFound, finder: _Finder) -> list[dict[str, Any]]:
    rows = [
        {
            "file": name,
            "label": finder.classes[int(label)],
            "words": finder.class_words[int(label)],
            "score": float(score),
            **dict(zip(("left", "top", "right", "bottom"), map(float, box), strict=True)),
            "mask": None if found.mask is None else json.dumps(found.mask[row]),
        }
        for row, (box, score, label) in enumerate(zip(found.box, found.score, found.label, strict=True))
    ]
    return rows or [{"file": name}]


def _draw(image: Image, found: ImageFound, finder: _Finder, path: Path) -> None:
    with open_image(image.data) as opened:
        pixels = opened.convert("RGB")
    picture = drawn(Picture(image=pixels, found=shown_objects(found, finder.classes)), _SIDE)
    try:
        with replacing(path) as temporary:
            picture.save(temporary, "PNG")
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from None
