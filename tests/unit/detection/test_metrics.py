"""Average precision and localisation error, against the published code, slow versions and hand-made tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.objects import ImageObjects
from resnet_pipeline.detection.metrics import (
    coco_metrics,
    ground_truth,
    localisation_wrong,
    overlaps,
    voc_mean_precision,
    voc_precision,
)
from resnet_pipeline.detection.results import ImageFound, Results, read_results
from resnet_pipeline.errors import UserError
from resnet_pipeline.staging.stage import Source, pack
from resnet_pipeline.storage.local import LocalStorage
from tests.annotations import coco_files
from tests.detections import jittered, published
from tests.packing import InThisProcess


@pytest.fixture
def small(make_folder, tmp_path) -> Dataset:
    pack(Source.at(make_folder(coco_files())), LocalStorage(tmp_path / "d"), name="d", workers=InThisProcess)
    return Dataset.open(tmp_path / "d")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_s_figures_are_those_of_its_own_code(coco, kind):
    results = jittered(coco, "val", masks=kind == "segm")
    ours = coco_metrics(coco, results, kind=kind)
    stats, precision = published(ground_truth(coco, "val", kind), results.coco(coco), kind)
    figures = [ours.ap, ours.ap50, ours.ap75, ours.small, ours.medium, ours.large]
    np.testing.assert_allclose(figures, 100 * stats[:6], atol=1e-6)
    assert ours.recall == pytest.approx(100 * stats[8], abs=1e-6) and 5 < ours.ap < 95
    per_class = [p[p > -1].mean() * 100 if (p > -1).any() else -1 for p in np.moveaxis(precision[..., 0, -1], 2, 0)]
    np.testing.assert_allclose(ours.per_class, per_class, atol=1e-6)


@pytest.mark.slow
def test_the_truth_of_coco128_is_the_published_file_s(coco, coco128):
    import json
    import tarfile

    with tarfile.open(coco128) as tar:
        published_file = json.load(tar.extractfile("annotations/instances_val2017.json"))
    truth = ground_truth(coco, "val", "segm")

    def key(a):
        return a["image_id"], a["category_id"], round(a["area"], 6), [round(v, 6) for v in a["bbox"]], a["iscrowd"]

    assert sorted(map(key, truth["annotations"])) == sorted(map(key, published_file["annotations"]))
    assert sum(a["iscrowd"] for a in truth["annotations"]) == 10
    by = {(a["image_id"], tuple(a["bbox"])): a["segmentation"] for a in published_file["annotations"]}
    for own in truth["annotations"]:
        image, box = own["image_id"], [round(v, 6) for v in own["bbox"]]
        assert any(
            k[0] == image and np.allclose(k[1], box, atol=1e-6) and v == own["segmentation"] for k, v in by.items()
        )


@pytest.mark.slow
def test_intervals_are_those_of_samples_of_the_images(coco):
    results = jittered(coco, "val")
    plain, sampled = coco_metrics(coco, results), coco_metrics(coco, results, samples=40)
    (low, high), (low50, high50) = sampled.intervals
    assert low < plain.ap < high and low50 < plain.ap50 < high50 and high - low < 20
    assert coco_metrics(coco, results, samples=40) == sampled, "the same each time"
    assert sampled.ap == plain.ap


def test_nothing_found_is_nothing(small):
    empty = Results(split="train", found=[seen([], [])] * 2)
    metrics = coco_metrics(small, empty)
    assert (metrics.ap, metrics.ap50, metrics.recall) == (0, 0, 0)
    # the toothbrush is a crowd
    assert metrics.per_class[0] == 0


def test_what_is_found_exactly_is_found(small):
    objects = small.splits["train"].objects
    found = [
        ImageFound(box=e.box, score=np.ones(len(e)), label=e.label.astype(np.int64))
        for e in map(objects.of, range(len(objects)))
    ]
    metrics = coco_metrics(small, Results(split="train", found=found))
    assert metrics.ap == metrics.ap50 == 100 and metrics.per_class == (100, -1)


def image(boxes, labels, difficult=None):
    count = len(labels)
    return ImageObjects(
        image=1,
        box=np.array(boxes, float).reshape(-1, 4),
        label=np.array(labels, np.int32),
        number=np.arange(count),
        crowd=np.zeros(count, bool),
        difficult=np.array(difficult or [False] * count),
        area=np.zeros(count),
        mask=[""] * count,
    )


def seen(boxes, scores, labels=None):
    return ImageFound(
        box=np.array(boxes, float).reshape(-1, 4),
        score=np.array(scores, float),
        label=np.array(labels or [0] * len(scores), np.int64),
    )


ONE, TWO, FAR = [0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]


def test_voc_s_precision_by_hand():
    # three objects; found in order: right, wrong, right, so precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3
    truth = [image([ONE, TWO], [0, 0]), image([ONE], [0])]
    found = [seen([ONE, FAR], [0.9, 0.8]), seen([ONE], [0.7])]
    assert voc_precision(truth, found, 0) == pytest.approx(100 * (1 / 3 + 1 / 3 * 2 / 3))
    # at recalls 0 to 0.3 precision 1, at 0.4 to 0.6 2/3, then none
    assert voc_precision(truth, found, 0, points="11") == pytest.approx(100 * (4 * 1 + 3 * 2 / 3) / 11)
    assert voc_precision(truth, found, 1) == -1


def test_voc_s_second_detection_is_wrong_and_a_difficult_object_counts_for_nothing():
    twice = [seen([ONE, ONE], [0.9, 0.95])]
    assert voc_precision([image([ONE], [0])], twice, 0) == 100, "the better one is right, the other comes after it"
    assert voc_precision([image([ONE, TWO], [0, 0])], [seen([ONE, ONE, TWO], [0.9, 0.8, 0.7])], 0) == pytest.approx(
        100 * (1 / 2 + 1 / 2 * 2 / 3)
    )
    hard = [image([ONE, TWO], [0, 0], [True, False])]
    assert voc_precision(hard, [seen([ONE, TWO], [0.9, 0.8])], 0) == 100
    assert voc_precision([image([ONE], [0], [True])], twice, 0) == -1


def slow_voc(truth, found, label):
    """VOC's own algorithm, detection by detection over all images."""
    rows = sorted(
        ((f.score[i], n, i) for n, f in enumerate(found) for i in range(len(f)) if f.label[i] == label),
        key=lambda row: -row[0],
    )
    taken, right = set(), []
    for _, n, i in rows:
        own = [k for k in range(len(truth[n])) if truth[n].label[k] == label]
        shared = [overlaps(found[n].box[i : i + 1], truth[n].box[k : k + 1])[0, 0] for k in own]
        best = int(np.argmax(shared)) if own else -1
        hit = best >= 0 and shared[best] >= 0.5 and (n, best) not in taken
        taken |= {(n, best)} if hit else set()
        right.append(hit)
    objects = sum(int((t.label == label).sum()) for t in truth)
    area, before = 0.0, 0.0
    points = [(sum(right[: k + 1]) / objects, sum(right[: k + 1]) / (k + 1)) for k in range(len(right))]
    for k, (recall, _) in enumerate(points):
        area += (recall - before) * max(p for _, p in points[k:])
        before = recall
    return 100 * area


def test_voc_s_precision_against_a_slow_version():
    rng = np.random.default_rng(3)
    truth, found = [], []
    for _ in range(30):
        corner = rng.uniform(0, 50, (5, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (5, 2))], axis=1)
        truth.append(image(boxes, rng.integers(0, 3, 5)))
        found.append(seen(boxes + rng.normal(0, 2, boxes.shape), rng.permutation(1000)[:5] / 1000 + 1e-4 * len(truth),
                          list(rng.integers(0, 3, 5))))  # fmt: skip
    each = [voc_precision(truth, found, label) for label in range(3)]
    assert each == pytest.approx([slow_voc(truth, found, label) for label in range(3)])
    mean, interval = voc_mean_precision(truth, found, 4, samples=50)
    assert mean == pytest.approx(np.mean(each)) and interval[0] < mean < interval[1]
    assert voc_mean_precision(truth, found, 4)[1] is None


def test_localisation_needs_the_class_and_half_of_the_box():
    truth = [image([ONE, TWO], [3, 5])] * 5
    guesses = np.array([[3, 1], [3, 1], [1, 3], [5, 1], [1, 2]])
    boxes = np.array([[ONE, FAR], [[0, 0, 10, 4.9], ONE], [FAR, [0, 0, 10, 5]], [ONE, ONE], [ONE, ONE]], float)
    labels = np.array([3, 3, 3, 5, 3])
    assert localisation_wrong(truth, labels, guesses, boxes).tolist() == [False, True, False, True, True]


def test_overlaps_against_pixels():
    grid = np.zeros((2, 12, 12), bool)
    for mask, (x0, y0, x1, y1) in zip(grid, ((1, 2, 7, 9), (3, 1, 11, 6)), strict=True):
        mask[y0:y1, x0:x1] = True
    share = (grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum()
    assert overlaps(np.array([[1.0, 2, 7, 9]]), np.array([[3.0, 1, 11, 6]]))[0, 0] == pytest.approx(share)


def test_results_come_back_from_their_file(small, tmp_path):
    results = jittered(small, "train")
    file = results.write(small, tmp_path / "found.json")
    again = read_results(file, small, "train")
    for one, other in itertools.zip_longest(results.found, again.found):
        np.testing.assert_allclose(one.box, other.box)
        assert one.label.tolist() == other.label.tolist() and one.score.tolist() == other.score.tolist()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ("{}", "is no file of COCO's results"),
        ('[{"image_id": 1}]', "entry 1 can't be read: has no 'bbox'"),
        ('[{"image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 1}]', "entry 1 names image 9, which split"),
        ('[{"image_id": 1, "category_id": 4, "bbox": [1, 2, 3, 4], "score": 1}]', "entry 1 names category 4, which d"),
        (
            '[{"image_id": 1, "category_id": 3, "bbox": [1, 2, NaN, 4], "score": 1}]',
            "a box or a score that is no number",
        ),
    ],
)
def test_a_file_of_other_results_is_one_line(small, tmp_path, content, words):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        read_results(tmp_path / "x.json", small, "train")
    assert "x.json" in str(caught.value) and "\n" not in str(caught.value)
