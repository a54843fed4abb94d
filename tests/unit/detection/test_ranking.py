"""Average precisions of samples of the images, against COCO's code and a plain computation on the images repeated."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from faster_coco_eval.faster_eval_api_cpp import COCOevalAccumulate

from resnet_pipeline.data.objects import ImageObjects
from resnet_pipeline.detection.metrics import _evaluated, _ranked, ground_truth, paired_difference, voc_mean_precision
from resnet_pipeline.detection.ranking import Ranked, drawn_times, mean_precision
from resnet_pipeline.detection.results import ImageFound
from tests.detections import jittered


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_a_sample_s_precision_is_coco_s_own_of_the_images_repeated(coco, kind):
    results = jittered(coco, "val", masks=True)
    rng = np.random.default_rng(0)  # of two equal scores in an image that is repeated, either may come first
    found = [replace(each, score=rng.random(len(each.score))) for each in results.found]
    results = replace(results, found=found)
    evaluation = _evaluated(ground_truth(coco, "val", kind), results.coco(coco), kind)
    parameters, matches = copy.copy(evaluation._paramsEval), evaluation._evalImgs_cpp
    images = len(parameters.imgIds)
    times = np.concatenate([np.ones((1, images), np.int64), drawn_times(images, 5, seed=1)])
    ap, ap50 = mean_precision(_ranked(evaluation), times, "101")
    for sample, own in enumerate(times):
        chosen = np.repeat(np.arange(images), own)
        taken = [matches[start + i] for start in range(0, len(matches), images) for i in chosen]
        precision = COCOevalAccumulate(parameters, taken)["precision"][:, :, :, 0, -1]
        assert ap[sample] == pytest.approx(100 * precision[precision > -1].mean(), abs=1e-9)
        assert ap50[sample] == pytest.approx(100 * precision[0][precision[0] > -1].mean(), abs=1e-9)


@pytest.mark.parametrize("points", ["11", "all"])
def test_voc_s_interval_is_that_of_the_images_repeated(points):
    rng = np.random.default_rng(5)
    truth, found = [], []
    for number in range(20):
        corner = rng.uniform(0, 50, (4, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (4, 2))], axis=1)
        label = rng.integers(0, 3, 4)
        truth.append(ImageObjects(
            image=number, box=boxes, label=label.astype(np.int32), number=np.arange(4), crowd=np.zeros(4, bool),
            difficult=rng.random(4) < 0.2, area=np.ones(4), mask=[""] * 4,
        ))  # fmt: skip
        found.append(ImageFound(box=boxes + rng.normal(0, 3, boxes.shape), score=rng.random(4), label=label))
    means = []
    for own in drawn_times(20, 30, seed=2):
        chosen = np.repeat(np.arange(20), own)
        means.append(voc_mean_precision([truth[i] for i in chosen], [found[i] for i in chosen], 4, points=points)[0])
    _, interval = voc_mean_precision(truth, found, 4, points=points, samples=30, seed=2)
    assert interval == pytest.approx(np.percentile(means, [2.5, 97.5]))


@pytest.mark.slow
def test_a_difference_of_detectors_is_that_on_the_same_samples(coco):
    one, other = jittered(coco, "val"), jittered(coco, "val", seed=4)
    by, (low, high) = paired_difference(coco, one, other, samples=50)
    back, (lowest, highest) = paired_difference(coco, other, one, samples=50)
    assert (by, low, high) == pytest.approx((-back, -highest, -lowest)) and low < by < high
    assert paired_difference(coco, one, one, samples=5) == (0.0, (0.0, 0.0))


def test_many_samples_in_parts_are_those_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    right = rng.random((3, 40)) < 0.4
    ranked = Ranked(rng.integers(0, 10, 40), right, ~right & (rng.random((3, 40)) < 0.9), rng.integers(0, 5, 10))
    times = drawn_times(10, 7, seed=0)
    whole = ranked.precision(times, "101")
    monkeypatch.setattr("resnet_pipeline.detection.ranking._MOST_NUMBERS", 80)
    np.testing.assert_array_equal(ranked.precision(times, "101"), whole)


def test_a_sample_without_objects_of_a_class_leaves_it_out():
    nothing = np.zeros((1, 0), np.bool_)
    empty = Ranked(np.zeros(0, np.int64), nothing, nothing, np.array([1, 0]))
    full = Ranked(np.array([1]), np.array([[True]]), np.array([[False]]), np.array([0, 1]))
    ap, _ = mean_precision([empty, full], np.array([[1, 1], [2, 0], [0, 2]]), "101")
    assert ap.tolist() == [50, 0, 100]
    assert mean_precision([full], np.array([[2, 0]]), "all")[0].tolist() == [-1]
