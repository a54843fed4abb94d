"""What is missed, confused and invented, on images made by hand."""

from __future__ import annotations

import numpy as np

from resnet_pipeline.data.objects import ImageObjects
from resnet_pipeline.detection.mistakes import confusions, matches_of
from resnet_pipeline.detection.results import ImageFound


def there(boxes, labels, *, crowd=(), difficult=()):
    rows = range(len(labels))
    return ImageObjects(
        image=1, number=np.arange(len(labels)), box=np.array(boxes, np.float64).reshape(-1, 4), label=np.array(labels),
        crowd=np.array([row in crowd for row in rows], np.bool_), area=np.ones(len(labels)),
        difficult=np.array([row in difficult for row in rows], np.bool_), mask=[""] * len(labels),
    )  # fmt: skip


def seen(boxes, labels, scores):
    return ImageFound(
        box=np.array(boxes, np.float64).reshape(-1, 4), label=np.array(labels, np.int64), score=np.array(scores)
    )


A, B, C, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10), (80, 80, 90, 90)


def test_each_kind_of_mistake_is_told_from_the_others():
    truth = there([A, B, C], [0, 1, 1])
    found = seen([A, A, (20, 0, 30, 11), FAR], [0, 0, 0, 1], [0.9, 0.8, 0.7, 0.6])
    matches = matches_of(truth, found)
    assert matches.right.tolist() == [[0, 0]] and matches.confused.tolist() == [[1, 2]]
    assert matches.missed.tolist() == [2] and matches.invented.tolist() == [1, 3] and matches.wrong == 4
    assert confusions([truth], [found], 2).tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]


def test_a_detection_of_the_right_class_comes_before_a_better_scored_one_of_another():
    matches = matches_of(there([A], [0]), seen([A, A], [1, 0], [0.9, 0.5]))
    assert matches.right.tolist() == [[0, 1]] and not len(matches.confused) and matches.invented.tolist() == [0]


def test_crowds_and_difficult_objects_are_no_mistakes():
    truth = there([A, B, C], [0, 0, 0], crowd=[0], difficult=[1])
    matches = matches_of(truth, seen([A, A, B], [0, 0, 1], [0.9, 0.8, 0.7]))
    assert matches.missed.tolist() == [2] and matches.wrong == 1


def test_images_with_nothing_in_them_or_nothing_found():
    assert matches_of(there([], []), seen([A], [0], [0.5])).invented.tolist() == [0]
    assert matches_of(there([A], [0]), seen([], [], [])).missed.tolist() == [0]
    assert matches_of(there([], []), seen([], [], [])).wrong == 0
