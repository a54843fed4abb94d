"""The explorer of a detector: its worst images, what it takes for what, and its classes, as one HTML page."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.data.image_files import open_image
from resnet_pipeline.data.objects import ImageObjects
from resnet_pipeline.detection.mistakes import Matches, confusions, matches_of
from resnet_pipeline.detection.results import ImageFound
from resnet_pipeline.detection.trained import above
from resnet_pipeline.jobs.detect import (
    DetectionTest,
    DetectorEvaluation,
    evaluate_detectors,
    evaluate_detectors_together,
    tested_part,
)
from resnet_pipeline.jobs.pictures import LEAST_SCORE, shown_objects
from resnet_pipeline.report.detection_explorer import (
    Confusion,
    DetectedClass,
    DetectionExplorer,
    WrongImage,
    picture_uri,
    write_detection_explorer,
)
from resnet_pipeline.report.detections import Picture
from resnet_pipeline.workspace import Workspace

_PAIRS, _NOTHING = 20, "nothing"


def explore_detectors(
    workspace: Workspace,
    references: Sequence[str],
    test: DetectionTest,
    *,
    mistakes: int = 48,
    output: Path | None = None,
) -> Path:
    """Write the page on a detector, or on several as one; what they find is kept, or found first.

    Mistakes are of what has a score of at least 0.5, at an IoU of 0.5. Returns the page's path, by default
    reports/errors-<dataset>-<model>-objects.html under the root. Raises UserError as `evaluate_detectors` does.

    Example: ``explore_detectors(Workspace.of(), ["scenes-maskrcnn-resnet8-c4"], DetectionTest(dataset="scenes"))``
    """
    if len(references) > 1:
        evaluation = evaluate_detectors_together(workspace, references, test)
    else:
        (evaluation,) = evaluate_detectors(workspace, references, test)
    dataset = tested_part(open_dataset(workspace, test.dataset), evaluation.split, test.images)
    model = "".join(c if c.isalnum() or c in "-." else "-" for c in references[0] if len(references) == 1) or "ensemble"
    name = f"errors-{dataset.name}-{model.strip('-')[-80:]}-objects.html"
    return write_detection_explorer(
        detection_explorer(dataset, evaluation, mistakes), output or workspace.reports / name
    )


def detection_explorer(dataset: Dataset, evaluation: DetectorEvaluation, mistakes: int) -> DetectionExplorer:
    """Put together what the page shows of an evaluation on a dataset's split."""
    objects, classes = dataset.splits[evaluation.split].objects, dataset.classes
    assert objects is not None  # it was tested on them
    truth = [objects.of(sample) for sample in range(len(objects))]
    found = [above(each, LEAST_SCORE) for each in evaluation.results.found]
    matches = [matches_of(there, own) for there, own in zip(truth, found, strict=True)]
    wrong = np.array([each.wrong for each in matches])
    worst = [int(sample) for sample in np.argsort(-wrong, kind="stable")[:mistakes] if wrong[sample]]
    counts, names = confusions(truth, found, len(classes)), [*classes, _NOTHING]
    apart = counts.copy()
    np.fill_diagonal(apart, 0)
    pairs = [divmod(int(place), len(names)) for place in np.argsort(-apart, axis=None, kind="stable")[:_PAIRS]]
    return DetectionExplorer(
        title=f"Mistakes of {evaluation.reference} on {dataset.name}",
        subtitle=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M UTC} · dataset {dataset.name} "
        f"({dataset.fingerprint[:12]}), {evaluation.split}, {evaluation.images:,} images · {evaluation.protocol}",
        boxes=evaluation.boxes_measured(),
        least_score=LEAST_SCORE,
        wrong=int(np.count_nonzero(wrong)),
        images=[_shown(dataset, evaluation.split, sample, truth[sample], found[sample], matches[sample])
                for sample in worst],
        confusions=[
            Confusion(there=names[row], found=names[column], count=int(apart[row, column]), of=int(counts[row].sum()))
            for row, column in pairs if apart[row, column]
        ],
        classes=_classes(counts, classes, evaluation.boxes.per_class),
    )  # fmt: skip


def _classes(counts: np.ndarray, classes: Sequence[str], precision: Sequence[float]) -> list[DetectedClass]:
    rows = [
        DetectedClass(
            name=name,
            objects=int(counts[k].sum()),
            ap=precision[k],
            right=int(counts[k, k]),
            confused=int(counts[k, :-1].sum() - counts[k, k]),
            missed=int(counts[k, -1]),
            invented=int(counts[-1, k]),
        )
        for k, name in enumerate(classes)
        if counts[k].sum()
    ]
    return sorted(rows, key=lambda row: row.ap)


def _shown(
    dataset: Dataset, split: str, sample: int, truth: ImageObjects, found: ImageFound, matches: Matches
) -> WrongImage:
    samples = dataset.splits[split]
    with open_image(samples.encoded(sample).tobytes()) as image:
        pixels = image.convert("RGB")
    boxes = replace(found, mask=None)  # masks would hide what was missed
    picture = Picture(image=pixels, found=shown_objects(boxes, dataset.classes), truth=truth.box[~truth.crowd].tolist())
    return WrongImage(
        key=samples.keys[sample],
        uri=picture_uri(picture),
        missed=[dataset.classes[label] for label in truth.label[matches.missed]],
        confused=[
            (dataset.classes[truth.label[there]], dataset.classes[found.label[own]]) for there, own in matches.confused
        ],
        invented=[dataset.classes[label] for label in found.label[matches.invented]],
    )
