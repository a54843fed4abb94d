from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.scores import Scores
from resnet_pipeline.jobs.explore import explorer_data
from resnet_pipeline.report.explorer import thumbnail, write_explorer
from tests.images import jpeg
from tests.unit.report.test_report import Checker

HOSTILE = "<script>document.title = 'broken'</script><img src=x onerror=alert(1)>"


def scores_of(digits, images=120, seed=0) -> Scores:
    """Scores of the first images of the digits, about a third of them wrong."""
    split, rng = digits.splits["val"], np.random.default_rng(seed)
    labels = split.labels[:images]
    logits = rng.normal(size=(images, 10)) + 2.2 * np.eye(10)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Scores(
        model="m", weights_sha256="0" * 64, dataset_fingerprint=digits.fingerprint, split="val",
        protocol="center-16-of-18", seconds=1.0, keys=split.keys[:images], labels=labels,
        probabilities=probabilities.astype(np.float32),
    )  # fmt: skip


def page_of(digits, tmp_path, **changes) -> tuple[str, Checker]:
    data = explorer_data(digits, scores_of(digits), title="Errors of digits/resnet8 on digits", models=["a"], **changes)
    page = write_explorer(data, tmp_path / "sub" / "errors.html").read_text()
    checker = Checker()
    checker.feed(page)
    return page, checker


def test_the_numbers_are_those_of_the_scores(digits):
    scores = scores_of(digits)
    data = explorer_data(digits, scores, title="t", models=["a"], mistakes=5)
    answers = scores.probabilities.argmax(1)
    matrix = confusion_matrix(scores.labels, answers, labels=range(10))
    assert data.wrong == 120 - np.trace(matrix) > 20
    assert data.measured.top1 == pytest.approx(100 * data.wrong / 120) and not data.measured.complete
    assert data.measured.top1_interval[0] < data.measured.top1 < data.measured.top1_interval[1]
    for row in data.classes:
        k = int(row.name.name)
        assert row.images == matrix[k].sum() and row.top1 == pytest.approx(100 - 100 * matrix[k, k] / row.images)
        others = np.delete(matrix[k], k)
        assert row.times == others.max() and (row.taken_for is None) == (others.max() == 0)
    assert [row.top1 for row in data.classes] == sorted((row.top1 for row in data.classes), reverse=True)
    np.fill_diagonal(matrix, 0)
    assert data.pairs[0].count == matrix.max()


def test_the_worst_mistakes_come_first_with_their_own_images(digits):
    scores = scores_of(digits)
    data = explorer_data(digits, scores, title="t", models=["a"], mistakes=5)
    margin = scores.probabilities.max(1) - scores.probabilities[np.arange(120), scores.labels]
    worst = np.argsort(-margin)[:5]
    assert [m.key for m in data.mistakes] == [scores.keys[i] for i in worst]
    for mistake, row in zip(data.mistakes, worst, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(mistake.thumbnail.uri.split(",")[1]))).convert("L")
        original = Image.open(io.BytesIO(digits.splits["val"].encoded(int(row)).tobytes())).convert("L")
        assert shown.size == original.size
        assert np.abs(np.asarray(shown, dtype=int) - np.asarray(original)).mean() < 6  # JPEG twice
        assert mistake.guesses[0].probability > mistake.label_probability
        assert int(mistake.label.name) == scores.labels[row]


@pytest.mark.slow
def test_the_page_is_whole_and_fetches_nothing(digits, tmp_path):
    page, checker = page_of(digits, tmp_path)
    assert checker.open == []
    text = " ".join(" ".join(checker.text).split())
    for part in ("top-1 error", "95 % interval", "expected calibration error", "120 of 364 images", digits.fingerprint):
        assert part in text, part
    images = [attributes for tag, attributes in checker.tags if tag == "img"]
    assert images and all(a["src"].startswith("data:image/jpeg;base64,") and a["alt"] for a in images)
    outside = [
        v for _, a in checker.tags for k, v in a.items() if k in ("src", "href") and not v.startswith(("#", "data:"))
    ]
    assert outside == [] and "@import" not in page and not re.search(r"url\((?!['\"]?#)", page)


@pytest.mark.slow
def test_hostile_names_are_shown_as_text(digits, tmp_path, monkeypatch):
    words = {name: HOSTILE + name for name in digits.classes}
    monkeypatch.setattr(digits, "manifest", replace(digits.manifest, class_words=words))
    page, checker = page_of(digits, tmp_path)
    assert page.count("<script") == 1 and "onerror=alert(1)>" not in page
    assert not [a for tag, a in checker.tags if "onerror" in a]
    assert HOSTILE.split("<img")[0] in "".join(checker.text).replace("\n", "")


@pytest.mark.slow
def test_a_network_without_mistakes_has_a_page_too(digits, tmp_path):
    scores = scores_of(digits)
    scores.probabilities[:] = np.eye(10)[scores.labels]
    data = explorer_data(digits, scores, title="t", models=["a"])
    assert data.mistakes == data.pairs == []
    assert "every image is right" in write_explorer(data, tmp_path / "e.html").read_text()
    with pytest.raises(UserError, match="can't be written"):
        write_explorer(data, tmp_path / "e.html" / "x.html")


def test_thumbnails_are_small(tmp_path):
    large = thumbnail(jpeg(1200, 900, mode="CMYK"))
    with Image.open(io.BytesIO(base64.b64decode(large.uri.split(",")[1]))) as image:
        assert image.size == (108, 144) and image.mode == "RGB"
    assert len(large.uri) < 12_000
    assert not large.small and thumbnail(jpeg(32, 32)).small
