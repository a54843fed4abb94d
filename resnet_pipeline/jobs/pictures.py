"""Pictures of what a detector or localiser finds in a split's images, with what is really there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from resnet_pipeline.data.dataset import Dataset, split_of_objects
from resnet_pipeline.data.image_files import open_image
from resnet_pipeline.detection.finding import mask_pixels
from resnet_pipeline.detection.results import ImageFound, Results
from resnet_pipeline.detection.trained import above
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing
from resnet_pipeline.report.detections import Picture, Shown, detection_sheet

PICTURES, LEAST_SCORE = 12, 0.5
"""How many images are shown, and the score from which on something is."""


def pictures_of(
    dataset: Dataset, results: Results, path: Path, *, of: str, least_score: float = LEAST_SCORE, count: int = PICTURES
) -> Path:
    """Write a PNG of evenly spaced images with what ``of`` has found, and return its path.

    What has less than ``least_score`` is not shown. Raises UserError if it can't be written.

    Example: ``pictures_of(dataset, evaluation.results, Path("found.png"), of=evaluation.reference)``
    """
    pictures = list(_pictures(dataset, results, least_score, count))
    scored = f" with a score of at least {least_score}" if least_score else ""
    title = f"{of} on {results.split} of {dataset.name}: colours: what was found{scored}; white: what is there"
    try:
        with replacing(path) as temporary:
            detection_sheet(pictures, title=title).save(temporary, "PNG")
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from None
    return path


def shown_objects(found: ImageFound, classes: Sequence[str]) -> list[Shown]:
    """Return what was found in an image as it is drawn.

    Example: ``shown_objects(results.found[0], dataset.classes)``
    """
    masks = [None] * len(found) if found.mask is None else [mask_pixels(mask) for mask in found.mask]
    return [
        Shown(box=box.tolist(), label=int(label), text=f"{classes[int(label)]} {score:.2f}", mask=mask)
        for box, label, score, mask in zip(found.box, found.label, found.score, masks, strict=True)
    ]


def _pictures(dataset: Dataset, results: Results, least_score: float, count: int) -> Iterator[Picture]:
    samples = split_of_objects(dataset, results.split)
    assert samples.objects is not None  # split_of_objects has looked
    for sample in np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int)).tolist():
        with open_image(samples.encoded(sample).tobytes()) as image:
            pixels = image.convert("RGB")
        there = samples.objects.of(sample)
        yield Picture(
            image=pixels,
            found=shown_objects(above(results.found[sample], least_score), dataset.classes),
            truth=there.box[~there.crowd].tolist(),
            caption=Path(samples.keys[sample]).name,
        )
