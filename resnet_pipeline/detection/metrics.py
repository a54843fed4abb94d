"""How good detections are: COCO's and Pascal VOC's average precision, ILSVRC's localisation error; in percent.

Intervals are bootstrapped over images (Efron and Tibshirani, 1993, section 13.3: percentiles), since an average
precision is no mean over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.objects import ImageObjects
from resnet_pipeline.detection.ranking import Int64, Ranked, drawn_times, interval, mean_precision
from resnet_pipeline.detection.results import ImageFound, Results

Kind = Literal["bbox", "segm"]
Points = Literal["11", "all"]
Interval = tuple[float, float]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CocoMetrics:
    """COCO's figures in percent: ``ap`` over IoUs from 0.5 to 0.95, at 0.5 and 0.75, and by the objects' area.

    -1 stands where there are no such objects, as in COCO's own code. ``per_class`` is the ap of each class. ``recall``
    is the mean over classes and IoUs, of 100 detections an image. ``intervals`` are 95 % of ``ap`` and of ``ap50`` over
    samples of images, None if none were drawn.
    """

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float
    recall: float
    per_class: tuple[float, ...]
    intervals: tuple[Interval, Interval] | None = None


def coco_metrics(
    dataset: Dataset, results: Results, *, kind: Kind = "bbox", samples: int = 0, seed: int = 0
) -> CocoMetrics:
    """Return COCO's figures for the boxes, or the masks, of a split.

    Crowds, and VOC's difficult objects, count neither as found nor as missed. ``samples`` > 0 gives intervals by so
    many samples of the images.

    Example: ``coco_metrics(dataset, read_results(path, dataset, "val")).ap``
    """
    truth, found = ground_truth(dataset, results.split, kind), results.coco(dataset)
    if not found:
        there = {annotation["category_id"] for annotation in truth["annotations"]}
        per_class = tuple(0.0 if category["id"] in there else -1.0 for category in truth["categories"])
        return CocoMetrics(ap=0, ap50=0, ap75=0, small=0, medium=0, large=0, recall=0, per_class=per_class)
    evaluation = _evaluated(truth, found, kind)
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    small, medium, large = (_mean(precision[:, :, :, area, -1]) for area in (1, 2, 3))
    return CocoMetrics(
        ap=_mean(precision[:, :, :, 0, -1]),
        ap50=_mean(precision[0, :, :, 0, -1]),
        ap75=_mean(precision[5, :, :, 0, -1]),
        small=small,
        medium=medium,
        large=large,
        recall=_mean(recall[:, :, 0, -1]),
        per_class=tuple(_mean(precision[:, :, k, 0, -1]) for k in range(precision.shape[2])),
        intervals=_intervals(evaluation, samples, seed) if samples else None,
    )


def ground_truth(dataset: Dataset, split: str, kind: Kind = "bbox") -> dict[str, Any]:
    """Return a split's objects as COCO's JSON."""
    samples = dataset.splits[split]
    objects, facts = samples.objects, dataset.manifest.objects
    assert objects is not None and facts is not None  # results are read for such a split alone
    annotations: list[dict[str, Any]] = []
    for sample in range(len(samples)):
        each = objects.of(sample)
        for row in range(len(each)):
            left, top, right, bottom = (float(side) for side in each.box[row])
            annotation = {
                "id": len(annotations) + 1,
                "image_id": each.image,
                "category_id": facts.categories[int(each.label[row])],
                "bbox": [left, top, right - left, bottom - top],
                "area": float(each.area[row]),
                "iscrowd": int(each.crowd[row] or each.difficult[row]),
            }
            if kind == "segm":
                mask = each.segmentation(row)
                annotation["segmentation"] = mask or [[left, top, right, top, right, bottom, left, bottom]]
            annotations.append(annotation)
    images = [
        {"id": int(objects.images[i]), "width": int(samples.width[i]), "height": int(samples.height[i])}
        for i in range(len(samples))
    ]
    categories = [{"id": number, "name": name} for number, name in zip(facts.categories, dataset.classes, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def voc_precision(
    objects: Sequence[ImageObjects],
    found: Sequence[ImageFound],
    label: int,
    *,
    iou: float = 0.5,
    points: Points = "all",
) -> float:
    """Return Pascal VOC's average precision of a class in percent; -1 if there are no objects of it.

    ``points`` "11" is VOC 2007's: the mean of the best precision at recalls 0, 0.1, …, 1; "all" that from 2010 on: the
    area below the curve (Everingham et al., 2010 and 2015). Of the objects that a detection overlaps it takes the one
    that it overlaps most; the second detection of an object is wrong; difficult ones don't count.

    Example: ``voc_precision([objects.of(i) for i in range(len(objects))], results.found, 0)``
    """
    ranked = _voc_ranked(objects, found, label, iou)
    return float(ranked.precision(_all_once(len(objects)), points)[0, 0]) if ranked.objects.any() else -1.0


def voc_mean_precision(
    objects: Sequence[ImageObjects],
    found: Sequence[ImageFound],
    classes: int,
    *,
    iou: float = 0.5,
    points: Points = "all",
    samples: int = 0,
    seed: int = 0,
) -> tuple[float, tuple[float, float] | None]:
    """Return VOC's mean average precision over the classes that have objects, and its interval by samples of images."""
    ranked = [_voc_ranked(objects, found, label, iou) for label in range(classes)]
    ranked = [one for one in ranked if one.objects.any()]
    if not ranked:
        return -1.0, None
    value = float(mean_precision(ranked, _all_once(len(objects)), points)[0][0])
    times = drawn_times(len(objects), samples, seed) if samples else None
    return value, None if times is None else interval(mean_precision(ranked, times, points)[0])


def overlaps(boxes: Float64, others: Float64) -> Float64:
    """Return the intersection over union of boxes [N, 4] with others [M, 4]: float64 [N, M].

    >>> overlaps(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0, 3, 2]])).round(3).tolist()
    [[0.333]]
    """
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, others)]
    shared: Float64 = common / (areas[0][:, None] + areas[1][None, :] - common)
    return shared


def localisation_wrong(
    objects: Sequence[ImageObjects], labels: npt.NDArray[np.int64], guesses: npt.NDArray[np.int64], boxes: Float64
) -> npt.NDArray[np.bool_]:
    """Return whether each image is localised wrongly, bool [N]: ILSVRC's top-k localisation error is their mean.

    ``labels`` [N] are the images' classes, ``guesses`` [N, k] classes with a box each, ``boxes`` [N, k, 4]. A guess is
    right if its class is the image's and its box overlaps one of that class's objects with an IoU of at least 0.5
    (Russakovsky et al., 2015, section 4.2; the paper, appendix C).
    """
    wrong = np.ones(len(labels), dtype=np.bool_)
    for i, each in enumerate(objects):
        own = each.box[each.label == labels[i]]
        right = guesses[i] == labels[i]
        if len(own) and right.any():
            wrong[i] = not (overlaps(boxes[i][right], own) >= 0.5).any()
    return wrong


def _evaluated(truth: dict[str, Any], found: list[dict[str, Any]], kind: Kind) -> COCOeval_faster:
    gold = COCO(truth, print_function=_silent)
    evaluation = COCOeval_faster(gold, gold.loadRes(found), kind, print_function=_silent, separate_eval=True)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _intervals(evaluation: COCOeval_faster, samples: int, seed: int) -> tuple[Interval, Interval]:
    ranked = _ranked(evaluation)
    both = mean_precision(ranked, drawn_times(len(ranked[0].objects), samples, seed), "101")
    return interval(both[0]), interval(both[1])


def _ranked(evaluation: COCOeval_faster) -> list[Ranked]:
    """Return each class's matches with objects of any area."""
    parameters, matches = evaluation._paramsEval, evaluation._evalImgs_cpp
    images, areas, ious = len(parameters.imgIds), len(parameters.areaRng), len(parameters.iouThrs)
    ranked = []
    for first in range(0, len(matches), areas * images):  # they are listed by class, then by area, then by image
        # what an image's match keeps is in C++; its state for pickle has it as lists
        states = [match.__getstate__() for match in matches[first : first + images]]
        matched = [np.array(state[0], np.int64).reshape(ious, -1) > 0 for state in states]
        counts = [~np.array(state[4], np.bool_).reshape(ious, -1) for state in states]
        ranked.append(
            Ranked.of(
                [np.array(state[2], np.float64) for state in states],
                [hit & own for hit, own in zip(matched, counts, strict=True)],
                [~hit & own for hit, own in zip(matched, counts, strict=True)],
                np.array([len(state[3]) - sum(state[3]) for state in states], np.int64),
            )
        )
    return ranked


def paired_difference(
    dataset: Dataset, results: Results, others: Results, *, kind: Kind = "bbox", samples: int = 1_000, seed: int = 0
) -> tuple[float, Interval]:
    """Return by how much one detector's ap is better than another's on the same images, in points, and its interval.

    Each sample of the images is of both, so that what makes an image hard for both does not count.

    Example: ``paired_difference(dataset, candidate, champion)[1][0] > 0`` if it is better by more than chance.
    """
    truth = ground_truth(dataset, results.split, kind)
    images = len(truth["images"])
    times = np.concatenate([_all_once(images), drawn_times(images, samples, seed)])
    one, other = (
        mean_precision(_ranked(_evaluated(truth, found, kind)), times, "101")[0] if found else np.zeros(len(times))
        for found in (results.coco(dataset), others.coco(dataset))
    )
    return float(one[0] - other[0]), interval(one[1:] - other[1:])


def _all_once(images: int) -> Int64:
    return np.ones((1, images), np.int64)


def _mean(values: npt.NDArray[Any]) -> float:
    known = values[values > -1]
    return 100 * float(known.mean()) if known.size else -1.0


def _silent(*_: object) -> None:
    """Print nothing."""


def _counted(each: ImageObjects, label: int) -> int:
    return int(((each.label == label) & ~each.difficult).sum())


def _voc_ranked(objects: Sequence[ImageObjects], found: Sequence[ImageFound], label: int, iou: float) -> Ranked:
    matched = [_voc_matched(each, own, label, iou) for each, own in zip(objects, found, strict=True)]
    right = [rows[None, :, 1] > 0 for rows in matched]
    counted = np.array([_counted(each, label) for each in objects], np.int64)
    return Ranked.of([rows[:, 0] for rows in matched], right, [~own for own in right], counted)


def _voc_matched(each: ImageObjects, found: ImageFound, label: int, iou: float) -> Float64:
    """Return (score, right) of an image's detections of a class that count, float64 [K, 2]."""
    rows = np.flatnonzero(found.label == label)
    rows = rows[np.argsort(-found.score[rows], kind="stable")]
    own = np.flatnonzero(each.label == label)
    if not len(own):
        return np.stack([found.score[rows], np.zeros(len(rows))], axis=1)
    shared = overlaps(found.box[rows], each.box[own])
    taken: set[int] = set()
    counted = []
    for row, overlap in zip(rows, shared, strict=True):
        best = int(overlap.argmax())
        enough = overlap[best] >= iou
        if enough and each.difficult[own[best]]:
            continue
        counted.append((found.score[row], float(enough and best not in taken)))
        if enough:
            taken.add(best)
    return np.array(counted).reshape(-1, 2)
