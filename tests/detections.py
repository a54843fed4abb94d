"""Objects found almost where they are, and COCO's figures of them by COCO's own code."""

from __future__ import annotations

import contextlib
import io

import numpy as np
from pycocotools import mask as api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.objects import ImageObjects
from resnet_pipeline.detection.results import ImageFound, Results


def jittered(dataset: Dataset, split: str, *, masks: bool = False, seed: int = 0) -> Results:
    """Return the objects themselves as detections: moved, some lost, some twice, some of another class."""
    rng = np.random.default_rng(seed)
    objects, found = dataset.splits[split].objects, []
    for sample in range(len(objects)):
        each = objects.of(sample)
        rows = [row for row in range(len(each)) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
        box = each.box[rows] + rng.normal(0, 6, (len(rows), 4))
        box[:, 2:] = np.maximum(box[:, 2:], box[:, :2] + 1)
        label = np.where(
            rng.random(len(rows)) < 0.9, each.label[rows], rng.integers(0, len(dataset.classes), len(rows))
        )
        mask = None
        if masks:
            mask = [encoded(each, row, dataset.splits[split], sample) for row in rows]
        found.append(
            ImageFound(box=box, score=np.round(rng.random(len(rows)), 2), label=label.astype(np.int64), mask=mask)
        )
    return Results(split=split, found=found)


def encoded(each: ImageObjects, row: int, split, sample: int):
    height, width = int(split.height[sample]), int(split.width[sample])
    segmentation = each.segmentation(row)
    rle = api.frPyObjects(segmentation, height, width)
    merged = api.merge(rle) if isinstance(segmentation, list) else rle
    return {"size": merged["size"], "counts": merged["counts"].decode()}


def published(truth, found, kind):
    """Return COCO's twelve figures by its own code, and the ap of each class."""
    with contextlib.redirect_stdout(io.StringIO()):
        gold = COCO()
        gold.dataset = truth
        gold.createIndex()
        evaluation = COCOeval(gold, gold.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"]
