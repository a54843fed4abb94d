"""What notebooks use, against what the commands compute from the same network and images."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import resnet_pipeline
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.scores import read_scores
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.jobs.predict import predict_folder
from resnet_pipeline.models import build_model
from resnet_pipeline.models.weights import load_weights
from tests.workspaces import add_short_run, with_digits


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, digits):
    """Return a workspace with the digits and one short run on them, ``runs/short``."""
    workspace = with_digits(tmp_path_factory.mktemp("api") / "work", digits)
    add_short_run(workspace, digits, "short", steps=20)
    return workspace


@pytest.fixture(scope="module")
def model(workspace):
    return resnet_pipeline.load_model("short", root=workspace.root)


@pytest.fixture(scope="module")
def dataset(workspace):
    return resnet_pipeline.open_dataset("digits", root=workspace.root)


def scores(workspace, reference, protocol):
    test = TestSpec(dataset="digits", protocol=protocol)
    (found,) = evaluate_models(workspace, [reference], test)
    return read_scores(found.path)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["center", "10-crop", "multi-scale"])
def test_the_images_of_a_dataset_are_predicted_as_evaluate_scores_them(workspace, model, dataset, protocol):
    kept = scores(workspace, "short", protocol)
    rows = {key: row for row, key in enumerate(kept.keys)}
    for batch in dataset.batches("val", batch=200):
        found = model.predict(batch.images, protocol=protocol, top=10)
        expected = kept.probabilities[[rows[dataset.splits["val"].keys[i]] for i in batch.index.tolist()]]
        best = np.take_along_axis(expected, found.classes, axis=1)
        np.testing.assert_allclose(found.probabilities, best, atol=1e-5)
        assert (np.diff(found.probabilities, axis=1) <= 0).all() and found.classes.shape == (len(batch.labels), 10)


@pytest.mark.slow
def test_files_of_any_form_are_predicted_as_by_the_command(workspace, model, dataset, tmp_path):
    samples = dataset.splits["val"]
    contents = [samples.encoded(number).tobytes() for number in range(6)]
    files = [tmp_path / "in" / f"{number}.jpg" for number in range(6)]
    files[0].parent.mkdir()
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    predict_folder(workspace, "short", tmp_path / "in", tmp_path / "out.json")
    expected = json.loads((tmp_path / "out.json").read_text())
    pictures = [Image.open(io.BytesIO(content)) for content in contents]
    arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    for images in (files, list(map(str, files)), contents, pictures, arrays, list(arrays), torch.from_numpy(arrays)):
        found = model.predict(images, top=5)
        for row, line in enumerate(expected):
            assert model.classes[found.classes[row, 0]] == line["label_1"]
            np.testing.assert_allclose(
                found.probabilities[row], [line[f"probability_{k}"] for k in range(1, 6)], atol=2e-3
            )
    one = model.predict(files[2])
    np.testing.assert_array_equal(one.classes, model.predict(files, top=5).classes[2:3])
    transparent = pictures[0].convert("RGBA")
    assert model.predict([transparent, pictures[0].convert("CMYK")]).classes.shape == (2, 5)


def test_batches_hold_every_image_once_whole_and_in_order(dataset, digits):
    samples = digits.splits["val"]
    batches = list(dataset.batches("val", batch=100))
    assert [len(batch.labels) for batch in batches] == [100, 100, 100, 64]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(364))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), torch.from_numpy(samples.labels))
    images = torch.cat([batch.images for batch in batches])
    assert images.dtype == torch.uint8 and images.shape == (364, samples.height[0], samples.width[0], 3)
    for number in (0, 99, 100, 363):
        picture = Image.open(io.BytesIO(samples.encoded(number).tobytes())).convert("RGB")
        assert np.abs(images[number].numpy().astype(int) - np.asarray(picture)).max() <= 6, "another JPEG decoder"
    assert dataset.fingerprint == digits.fingerprint and dataset.classes == tuple(digits.classes)
    assert set(dataset.splits) == {"train", "val"}


@pytest.mark.slow
def test_batches_are_cropped_and_resized_on_request(dataset, model):
    views = model.members[0].views
    batch = next(dataset.batches("val", batch=364, crop=views.crop, resize=views.resize))
    assert batch.images.shape == (364, views.crop, views.crop, 3)
    with torch.inference_mode():
        best = model.classifier(batch.images).argmax(1)
    assert (best.numpy() == model.predict(next(dataset.batches("val", batch=364)).images).classes[:, 0]).mean() > 0.99
    assert next(dataset.batches("val", batch=2, crop=8)).images.shape == (2, 8, 8, 3)


def test_a_batch_is_no_larger_than_its_split(dataset):
    (batch,) = dataset.batches("val", batch=10**9)
    assert len(batch.labels) == len(dataset.splits["val"])


def test_pixels_of_more_than_8_bits_are_scaled_or_refused_and_never_cut_off(model):
    grey = np.linspace(0, 255, 20 * 20).reshape(20, 20).astype(np.uint8)
    deep = grey.astype(np.uint16) * 257
    big_endian = Image.frombytes("I;16B", (20, 20), deep.astype(">u2").tobytes())
    of = [
        model.predict([image], top=10).probabilities
        for image in (Image.fromarray(grey), Image.fromarray(deep), big_endian)
    ]
    np.testing.assert_array_equal(of[1], of[0])
    np.testing.assert_array_equal(of[2], of[0])
    for unknown in (Image.fromarray(grey.astype(np.int32)), Image.fromarray((grey / 255).astype(np.float32))):
        with pytest.raises(UserError, match=f"image 0 is of mode {unknown.mode}, which does not say what white is"):
            model.predict([unknown])
    with pytest.raises(UserError, match="image 0 has no pixels"):
        model.predict([Image.new("RGB", (0, 5))])


def test_our_own_weights_file_keeps_its_preprocessing(workspace, model):
    reference = f"cifar-resnet8={workspace.runs / 'short' / 'weights.safetensors'}"
    other = resnet_pipeline.load_model(reference, dataset="digits", root=workspace.root)
    assert torch.equal(other.classifier.normalize.mean, model.classifier.normalize.mean)
    assert other.members[0].weights_sha256 == model.members[0].weights_sha256
    assert other.classes == model.classes


def test_a_preprocessing_that_is_left_out_is_warned_of(workspace):
    network = build_model("cifar-resnet8")
    with pytest.warns(UserWarning, match=r"the mean that it subtracts is left out: resnet_pipeline\.load_model"):
        load_weights(network, workspace.runs / "short" / "weights.safetensors")


def test_the_root_is_the_environment_s_by_default(workspace, monkeypatch):
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(workspace.root))
    assert resnet_pipeline.open_dataset("digits").name == "digits"
    assert resnet_pipeline.load_model("short").classes == tuple("0123456789")


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (["nowhere.png"], "nowhere.png can't be read"),
        ([b"no image"], "image 0 can't be used"),
        (np.zeros((2, 8, 8, 3), dtype=np.float32), r"image 0 must be uint8 \[H, W, 3\], RGB, not float32 \[8, 8, 3\]"),
        (np.zeros((8, 8), dtype=np.uint8), r"not uint8 \[8\]"),
        ([], "no images"),
    ],
)
def test_images_that_cannot_be_predicted_are_named(model, images, said):
    with pytest.raises(UserError, match=said):
        model.predict(images)


@pytest.mark.parametrize(
    ("split", "options", "said"),
    [
        ("vall", {}, "no split 'vall'; did you mean 'val'"),
        ("val", {"batch": 0}, "batch=0"),
        ("val", {"crop": 0}, "crop=0"),
        ("val", {"crop": 20, "resize": 10}, "resize=10"),
        ("val", {"resize": 10}, "needs crop"),
    ],
)
def test_batches_that_cannot_be_are_refused_before_the_first(dataset, split, options, said):
    with pytest.raises(UserError, match=said):
        dataset.batches(split, **options)


def test_what_is_not_there_is_named(workspace):
    with pytest.raises(UserError, match="no dataset 'digit'"):
        resnet_pipeline.open_dataset("digit", root=workspace.root)
    with pytest.raises(UserError, match="no model at"):
        resnet_pipeline.load_model("no such thing", root=workspace.root)
    with pytest.raises(UserError, match=r"unknown field stps; did you mean 'steps'"):
        resnet_pipeline.train("digits/resnet8", "digits", {"stps": 3}, root=workspace.root)
    with pytest.raises(AttributeError, match="load_models"):
        resnet_pipeline.load_models  # noqa: B018


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, resnet_pipeline; sys.exit(bool({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
