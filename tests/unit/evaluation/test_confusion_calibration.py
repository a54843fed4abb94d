from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.calibration import calibrate
from resnet_pipeline.evaluation.confusion import class_errors, confusion_pairs, label_places, top_classes
from resnet_pipeline.evaluation.metrics import label_ranks
from resnet_pipeline.report.evaluation_figures import reliability_figure, save_figure


@pytest.fixture
def tested():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 12, 600)
    logits = rng.normal(size=(600, 12)) + 1.5 * np.eye(12)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.astype(np.float32), labels


def test_errors_per_class_and_pairs_are_scikit_learn_s(tested):
    probabilities, labels = tested
    found = class_errors(probabilities, labels)
    matrix = confusion_matrix(labels, probabilities.argmax(1), labels=np.arange(12))
    np.testing.assert_array_equal(found.images, matrix.sum(1))
    np.testing.assert_array_equal(found.wrong1, matrix.sum(1) - np.diag(matrix))
    for label in range(12):
        of_class = labels == label
        accuracy = top_k_accuracy_score(labels[of_class], probabilities[of_class], k=5, labels=np.arange(12))
        assert found.top5[label] == pytest.approx(100 * (1 - accuracy))
    pairs = confusion_pairs(probabilities, labels, most=1000)
    np.fill_diagonal(matrix, 0)
    assert sum(p.count for p in pairs) == matrix.sum()
    assert all(p.count == matrix[p.label, p.predicted] for p in pairs)
    assert [p.count for p in pairs] == sorted((p.count for p in pairs), reverse=True)
    assert confusion_pairs(probabilities, labels, most=3) == pairs[:3]


def test_a_class_without_images_has_no_error():
    found = class_errors(np.array([[0.9, 0.1]]), np.array([0]))
    assert found.top1[0] == 0 and np.isnan(found.top1[1])


def test_places_and_best_classes_agree_on_ties_and_nan():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, (300, 9)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = np.nan
    labels = rng.integers(0, 9, 300)
    places = label_places(scores, labels)
    np.testing.assert_array_equal(places, label_ranks(torch.tensor(scores), torch.tensor(labels)).numpy())
    best = top_classes(scores, 99)
    np.testing.assert_array_equal(np.sort(best, 1), np.tile(np.arange(9), (300, 1)))
    known = places < 9
    np.testing.assert_array_equal(best[known, places[known]], labels[known])
    np.testing.assert_array_equal(top_classes(scores, 3), best[:, :3])


def test_reliability_is_scikit_learn_s(tested):
    probabilities, labels = tested
    found = calibrate(probabilities, labels, bins=10)
    right = probabilities.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, probabilities.max(1).astype(np.float64), n_bins=10)
    full = found.images > 0
    np.testing.assert_allclose(found.accuracy[full], accuracy)
    np.testing.assert_allclose(found.confidence[full], confidence)
    slow = sum(n * abs(a - c) for n, a, c in zip(found.images[full], accuracy, confidence, strict=True)) / 600
    assert found.error == pytest.approx(100 * slow)


def test_calibration_error_of_known_cases():
    certain = np.tile([[1.0, 0.0]], (10, 1))
    assert calibrate(certain, np.zeros(10, np.int64)).error == 0
    assert calibrate(certain, np.ones(10, np.int64)).error == 100
    assert calibrate(np.tile([[0.7, 0.3]], (10, 1)), np.array([0] * 7 + [1] * 3)).error == pytest.approx(0, abs=1e-9)


def test_unlabelled_images_have_no_errors(tested):
    probabilities, labels = tested
    labels = np.where(np.arange(600) < 4, -1, labels)
    for metric in (class_errors, confusion_pairs, calibrate, label_places):
        with pytest.raises(UserError, match="4 of 600 images have no label"):
            metric(probabilities, labels)


@pytest.mark.slow
def test_figures_are_written_whole_or_not_at_all(tested, tmp_path):
    figure = reliability_figure({"a <b>": calibrate(*tested), "empty bins": calibrate(*tested, bins=100)})
    save_figure(figure, tmp_path / "r.svg")
    assert (tmp_path / "r.svg").read_text().startswith("<?xml")
    save_figure(figure, tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match=r"r\.txt"):
        save_figure(figure, tmp_path / "r.txt")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be written"):
        save_figure(figure, tmp_path / "file" / "r.png")
