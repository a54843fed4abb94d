"""Intervals of COCO's average precision by samples of the images: this project's, against COCO's accumulation of each.

Run: python benchmarks/intervals.py [--images 5000] [--samples 500] [--rounds 3]

As many images as COCO's validation set has, with made-up objects of 80 classes, some 7 an image, and 67 detections. One
evaluation is made for both; printed are CPU seconds. What a sample takes by COCO's accumulation is measured on a few,
``--rounds``, and both values of each of these have to agree.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.faster_eval_api_cpp import COCOevalAccumulate
from ratios import ratio

from resnet_pipeline.detection.metrics import _ranked
from resnet_pipeline.detection.ranking import drawn_times, mean_precision

CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    truth, found = made_up(arguments.images)
    print(f"{arguments.images:,} images, {len(truth['annotations']):,} objects, {len(found):,} detections")
    gold = COCO(truth, print_function=lambda *_: None)
    evaluation = COCOeval_faster(gold, gold.loadRes(found), "bbox", print_function=lambda *_: None, separate_eval=True)
    evaluation.evaluate()
    times = drawn_times(arguments.images, arguments.samples, seed=0)
    ranked, sorting = timed(lambda: _ranked(evaluation))
    (ap, _), summing = timed(lambda: mean_precision(ranked, times, "101"))
    print(f"{sorting + summing:8.1f} s  ours: {sorting:.1f} to sort and match, {summing:.1f} for all samples")
    matches = evaluation._evalImgs_cpp
    each = []
    for own, expected in zip(times[: arguments.rounds], ap, strict=False):
        chosen = np.repeat(np.arange(arguments.images), own).tolist()
        taken = [matches[start + i] for start in range(0, len(matches), arguments.images) for i in chosen]
        result, took = timed(lambda taken=taken: COCOevalAccumulate(evaluation._paramsEval, taken))
        precision = result["precision"][:, :, :, 0, -1]
        assert abs(100 * precision[precision > -1].mean() - expected) < 1e-9
        each.append(took * arguments.samples)
    print(f"{np.median(each):8.1f} s  COCO's accumulation, from {len(each)} samples")
    print(f"it / ours {ratio(each, [sorting + summing] * len(each))}")


def made_up(images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return COCO's JSON of objects, and detections: each object a little aside, and sixty that are nothing."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, CLASSES + 1)
    share /= share.sum()
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []

    def boxes(count: int) -> list[list[float]]:
        return np.hstack([rng.uniform(0, (500, 380), (count, 2)), rng.uniform(10, 120, (count, 2))]).tolist()

    def classes(count: int) -> list[int]:
        return (1 + rng.choice(CLASSES, count, p=share)).tolist()

    for image in range(images):
        objects = int(rng.poisson(7.3))
        for box, category in zip(boxes(objects), classes(objects), strict=True):
            both = {"image_id": image, "category_id": category}
            number = len(annotations) + 1
            annotations.append({**both, "id": number, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
            aside = [box[0] + rng.normal(0, 4), box[1] + rng.normal(0, 4), *box[2:]]
            found.append({**both, "bbox": aside, "score": float(rng.random())})
        for box, category in zip(boxes(60), classes(60), strict=True):
            found.append({"image_id": image, "category_id": category, "bbox": box, "score": float(rng.random() * 0.6)})
    categories = [{"id": k + 1, "name": str(k)} for k in range(CLASSES)]
    sized = [{"id": image, "width": 640, "height": 480} for image in range(images)]
    return {"images": sized, "annotations": annotations, "categories": categories}, found


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return call(), time.process_time() - start


if __name__ == "__main__":
    main()
