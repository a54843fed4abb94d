from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from resnet_pipeline.config import ViewConfig
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import average
from resnet_pipeline.evaluation.predictor import Image, Predictor, checked
from resnet_pipeline.evaluation.protocols import protocol_of
from resnet_pipeline.evaluation.scoring import evaluate
from resnet_pipeline.evaluation.trained_model import Member
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.staging.stage import stage
from tests.images import jpeg

VIEWS = ViewConfig(crop=16, resize=18, scales=(16, 20))


def member(seed: int, classes: tuple[str, ...] = tuple("0123456789"), views: ViewConfig = VIEWS) -> Member:
    torch.manual_seed(seed)
    network = build_model("cifar-resnet8", num_classes=len(classes))
    return Member(
        name=f"m{seed}",
        classifier=Classifier(Normalize(torch.full((3,), 90.0)), network).eval(),
        views=views,
        weights_sha256=str(seed),
        network="cifar-resnet8",
        classes=classes,
        class_words=tuple(f"the digit {c}" for c in classes),
    )


@pytest.mark.parametrize("protocol", ["center", "10-crop", "multi-scale"])
def test_files_are_predicted_as_the_evaluation_scores_them(digits, protocol):
    network = member(0)
    kept = evaluate({"a": network.classifier}, digits, protocol_of(protocol, VIEWS), images=40)["a"]
    number = {key: i for i, key in enumerate(digits.splits["val"].keys)}
    files = [digits.splits["val"].encoded(number[key]).tobytes() for key in kept.keys]
    found = Predictor([network]).predict(checked(files), protocol=protocol, top=10)
    for row, classes in enumerate(found.classes):
        np.testing.assert_allclose(found.probabilities[row], kept.probabilities[row][classes], atol=1e-6)
    assert (np.diff(found.probabilities, axis=1) <= 0).all()


def test_an_ensemble_is_the_average_whatever_its_members_views(digits):
    members = [member(1), member(2, views=ViewConfig(crop=12, resize=16))]
    kept = average(
        [evaluate({"a": m.classifier}, digits, protocol_of("center", m.views), images=10)["a"] for m in members]
    )
    number = {key: i for i, key in enumerate(digits.splits["val"].keys)}
    files = [digits.splits["val"].encoded(number[key]).tobytes() for key in kept.keys]
    found = Predictor(members).predict(checked(files), top=3)
    expected = -np.sort(-kept.probabilities, axis=1)[:, :3]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    with pytest.raises(UserError, match="m3 and m1 can't be averaged"):
        Predictor([members[0], member(3, classes=("a", "b"))])


def other_formats() -> dict[str, bytes]:
    files = {}
    for name, mode, kind in (("cmyk", "CMYK", "JPEG"), ("png", "RGB", "PNG"), ("palette", "P", "GIF")):
        buffer = io.BytesIO()
        Pillow.open(io.BytesIO(jpeg(40, 50, seed=len(name)))).convert(mode).save(buffer, kind)
        files[name] = buffer.getvalue()
    return {**files, "grey": jpeg(40, 50, mode="L")}


def test_other_formats_are_predicted_as_they_would_be_staged(tmp_path):
    files = other_formats()
    for split in ("train", "val"):
        for name, data in files.items():
            # a PNG in disguise is converted when it is staged; where only bytes are known, a PNG counts as one
            path = tmp_path / "source" / split / name / ("0.png" if name == "png" else "0.JPEG")
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
    staged = stage(tmp_path / "source", tmp_path / "staged", name="formats", workers=1)
    network = member(0, classes=tuple(sorted(files)))
    kept = evaluate({"a": network.classifier}, staged, protocol_of("center", VIEWS))["a"]
    found = Predictor([network]).predict(checked([files[name] for name in staged.classes]), top=1)
    order = np.argsort(kept.labels)
    np.testing.assert_allclose(found.probabilities[:, 0], kept.probabilities[order].max(1), atol=1e-6)


def test_broken_files_come_back_with_the_reason():
    good = jpeg(30, 40)
    found = checked([good, b"", b"hello", good[: len(good) // 2]])
    assert isinstance(found[0], Image) and (found[0].height, found[0].width) == (30, 40)
    assert (
        found[1:3] == ["empty file", "no image format that is read here (JPEG, PNG, BMP, GIF, PPM, TIFF, WEBP)"]
        and "runcated" in found[3]
    )
    assert checked([]) == []
