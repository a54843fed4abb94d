from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import errors_of
from resnet_pipeline.evaluation.real_labels import agreement, read_real_labels, real_error
from tests.unit.evaluation.test_ensemble import member


def test_with_the_labels_themselves_the_error_is_the_usual_one(tmp_path):
    scores = member(0, 1.0)
    (tmp_path / "real.json").write_text(
        json.dumps({k: [int(v)] for k, v in zip(scores.keys, scores.labels, strict=True)})
    )
    labels = read_real_labels(tmp_path / "real.json")
    assert real_error(scores, labels).top1 == pytest.approx(errors_of(scores).top1)
    # a folder before the name does not matter
    moved = dataclasses.replace(scores, keys=[f"val/x/{k}" for k in scores.keys])
    assert real_error(moved, labels) == real_error(scores, labels)


def test_real_s_own_file_is_a_list_in_the_order_of_the_validation_images(tmp_path):
    scores, rng = member(0, 1.0), np.random.default_rng(3)
    order = rng.permutation(len(scores.keys))  # the dataset's order is another than the file's
    answers = scores.probabilities.argmax(1)
    keys = [f"val/n01440764/ILSVRC2012_val_{number + 1:08d}.JPEG" for number in order]
    labels = [rng.choice(12, rng.integers(0, 4), replace=False).tolist() for _ in order]
    (tmp_path / "real.json").write_text(json.dumps(labels))
    found = real_error(dataclasses.replace(scores, keys=keys), read_real_labels(tmp_path / "real.json"))
    # as google-research/reassessed-imagenet says how to use it: images without labels don't count
    right = [answers[row] in labels[number] for row, number in enumerate(order) if labels[number]]
    assert vars(found) == pytest.approx({"top1": 100 * (1 - np.mean(right)), "images": len(right)})


def test_any_of_several_labels_is_right_and_unlabelled_do_not_count():
    scores = member(0, 1.0)
    rng = np.random.default_rng(4)
    labels = {key: rng.choice(12, rng.integers(0, 4), replace=False).tolist() for key in scores.keys}
    answers = dict(zip(scores.keys, scores.probabilities.argmax(1), strict=True))
    wrong = [answers[key] not in right for key, right in labels.items() if right]
    assert 0 < len(wrong) < 400
    assert vars(real_error(scores, labels)) == pytest.approx({"top1": 100 * np.mean(wrong), "images": len(wrong)})


def test_what_is_wrong_with_the_labels_is_named(tmp_path):
    scores = member(0, 1.0)
    for text, said in (
        ("[1]", "00000001.JPEG"),
        ("3", "list of lists"),
        ('{"a": 3}', "'a'"),
        ('{"a": [true]}', "'a'"),
        ("{", "can't be read"),
    ):
        (tmp_path / "real.json").write_text(text)
        with pytest.raises(UserError, match=said):
            read_real_labels(tmp_path / "real.json")
    with pytest.raises(UserError, match=r"none\.json"):
        read_real_labels(tmp_path / "none.json")
    with pytest.raises(UserError, match="sample 0"):
        real_error(scores, {"x": [1]})
    with pytest.raises(UserError, match="class 12"):
        real_error(scores, {key: [12] for key in scores.keys})


def test_agreement_counts_equal_answers():
    first, second = member(0, 1.0).probabilities, member(1, 1.0).probabilities
    assert agreement(first, first) == 100
    assert agreement(first, second) == pytest.approx(100 * np.mean(first.argmax(1) == second.argmax(1)))
