from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import PurePath

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_pipeline.config import ViewConfig
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation import scoring
from resnet_pipeline.evaluation.forward import PASS_PIXELS
from resnet_pipeline.evaluation.protocols import protocol_of
from resnet_pipeline.evaluation.scores import merge_scores
from resnet_pipeline.evaluation.scoring import chosen_samples, evaluate, pieces, plan_chunks, score_chunks
from resnet_pipeline.models import Classifier, Normalize, build_model, fully_convolutional
from resnet_pipeline.staging.stage import stage

VIEWS = ViewConfig(crop=16, resize=18, scales=(16, 20))


def network(seed: int, classes: int = 10) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(
        Normalize(torch.tensor([90.0, 90.0, 90.0])), build_model("cifar-resnet8", num_classes=classes)
    ).eval()


@pytest.mark.parametrize(
    ("scales", "said"), [([15], "less than"), ([16, 10**11], "more than 4096"), ([20, 20], "named twice")]
)
def test_a_scale_that_can_t_be_tested_at_is_refused(scales, said):
    with pytest.raises(UserError, match=said):
        protocol_of("multi-scale", VIEWS, scales=scales)


def test_a_network_whose_output_is_not_finite_has_no_scores(digits):
    broken = network(0)
    with torch.no_grad():
        broken.network.fc.weight.fill_(3e38)
    key = digits.splits["val"].keys[0]
    with pytest.raises(
        UserError, match=rf"^a: what it computes for 20 of 20 images is not finite \(the first: {key}\)"
    ):
        evaluate({"a": broken}, digits, protocol_of("center", VIEWS), images=20)


def slow(model: Classifier, digits, name: str, index: int) -> np.ndarray:
    """One image after the other, with torchvision's transforms of tensors."""
    with Image.open(io.BytesIO(digits.splits["val"].encoded(index).tobytes())) as opened:
        image = torch.from_numpy(np.array(opened)).permute(2, 0, 1)
    resize = v2.Resize(18, antialias=True)
    if name == "center":
        views = [v2.CenterCrop(16)(resize(image))]
    elif name == "10-crop":
        views = list(v2.TenCrop(16)(resize(image)))
    else:
        dense = fully_convolutional(model, crop=16)
        scores = []
        for side in (16, 20):
            resized = v2.Resize(side, antialias=True)(image)
            for view in (resized, resized.flip(2)):
                scores.append(torch.softmax(dense(view.permute(1, 2, 0)[None]), 1).mean((2, 3))[0])
        return torch.stack(scores).mean(0).numpy()
    logits = [model(view.permute(1, 2, 0)[None])[0] for view in views]
    return torch.stack([torch.softmax(x, 0) for x in logits]).mean(0).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["center", "10-crop", "multi-scale"])
def test_scores_are_those_of_the_slow_way(digits, name):
    model = network(0)
    scores = evaluate({"a": model}, digits, protocol_of(name, VIEWS), images=40, backend="torch")["a"]
    assert scores.keys == [digits.splits["val"].keys[i] for i in chosen_samples(len(digits.splits["val"]), 40)]
    with torch.inference_mode():
        expected = [slow(model, digits, name, int(i)) for i in chosen_samples(len(digits.splits["val"]), 40)]
    np.testing.assert_allclose(scores.probabilities, expected, atol=1e-5)
    dali = evaluate({"a": model}, digits, protocol_of(name, VIEWS), images=40, backend="dali")["a"]
    # the decoders and resizers differ by a level or two of 255
    np.testing.assert_allclose(dali.probabilities, expected, atol=0.02)


@pytest.fixture(scope="module")
def photographs(imagenet_sample, tmp_path_factory):
    """Return three ImageNet files, staged."""
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(imagenet_sample) as tar:
        names = [m.name for m in tar if m.isfile()]
        for place, name in enumerate([names[0], *names[100:900:400]]):
            for split in ("train", "val"):
                path = folder / "source" / split / f"class{place % 2}" / PurePath(name).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(name).read())
    return stage(folder / "source", folder / "datasets" / "photographs", name="photographs", workers=1)


def pillow_scores(model: Classifier, data: bytes, name: str, sides, average: str) -> np.ndarray:
    """Score an image as sections 3.4 and 4.1 tell it, with Pillow and plain torch, one view after the other."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    found = []
    for side in sides:
        shorter = min(image.size)
        width, height = image.width * side // shorter, image.height * side // shorter
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        if name == "10-crop":
            x, y = width - 224, height - 224
            corners = [(0, 0), (x, 0), (0, y), (x, y), (round(x / 2), round(y / 2))]
            views = [resized.crop((left, top, left + 224, top + 224)) for left, top in corners]
        else:
            views = [resized]
        for view in [*views, *(v.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for v in views)]:
            maps = model.network.features(model.normalize(torch.from_numpy(np.array(view))[None]))[0]
            windows = [
                maps[:, top : top + 7, left : left + 7].mean((1, 2))
                for top in range(maps.shape[1] - 6)
                for left in range(maps.shape[2] - 6)
            ]
            logits = model.network.fc(torch.stack(windows))
            found.append((torch.softmax(logits, 1) if average == "softmax" else logits).mean(0))
    mean = torch.stack(found).double().mean(0)
    return (mean if average == "softmax" else torch.softmax(mean, 0)).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sides", "average"),
    [("10-crop", [256], "softmax"), ("multi-scale", [224, 288], "softmax"), ("multi-scale", [256], "logits")],
)
def test_scores_of_photographs_are_those_of_pillow_and_plain_torch(photographs, name, sides, average):
    torch.manual_seed(0)
    model = Classifier(Normalize(torch.tensor([123.7, 116.8, 103.9])), build_model("resnet18", num_classes=2)).eval()
    with torch.inference_mode():  # logits that differ by about one between images, as a trained network's at least
        grey = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
        model.network.fc.weight /= model(grey).std()
    protocol = protocol_of(name, ViewConfig(crop=224, resize=256), scales=sides, average=average)
    found = evaluate({"a": model}, photographs, protocol)["a"]
    split = photographs.splits["val"]
    assert found.keys == split.keys
    with torch.inference_mode():
        expected = np.stack(
            [pillow_scores(model, split.encoded(i).tobytes(), name, sides, average) for i in range(len(split))]
        )
    assert np.ptp(expected[:, 0]) > 0.02
    # two antialiased resizes that differ by a level or two of 255; measured 0.0006 at most
    np.testing.assert_allclose(found.probabilities, expected, atol=0.002)


@pytest.mark.parametrize("name", ["center", "10-crop", "multi-scale"])
def test_averaging_logits_is_another_protocol(digits, name):
    model = network(5)
    softmax, logits = (protocol_of(name, VIEWS, average=average) for average in ("softmax", "logits"))
    assert softmax.id != logits.id
    by_softmax, by_logits = (evaluate({"a": model}, digits, p, images=50)["a"] for p in (softmax, logits))
    np.testing.assert_allclose(by_logits.probabilities.sum(1), 1, atol=1e-5)
    difference = np.abs(by_logits.probabilities - by_softmax.probabilities).max()
    assert (difference < 1e-6) == (name == "center")


@pytest.mark.slow
def test_the_number_of_threads_changes_no_bit(digits):
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(evaluate({"a": network(1)}, digits, protocol_of("10-crop", VIEWS), images=100)["a"].probabilities)
        assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["10-crop", "multi-scale"])
def test_chunks_in_any_order_and_grouping_give_the_same_bits(digits, name):
    models = {"a": network(1), "b": network(2)}
    protocol = protocol_of(name, VIEWS)
    indices = chosen_samples(len(digits.splits["val"]), 120)
    plan = plan_chunks(digits, "val", protocol, indices, chunk_pixels=40_000)
    chunks = plan.chunks
    assert len(chunks) > 3 and sorted(np.concatenate(chunks)) == indices.tolist()
    assert plan.keys == [digits.splits["val"].keys[i] for i in indices]
    once = [part["a"] for part in score_chunks(models, plan)]
    for number, part in reversed(list(enumerate(once))):
        (alone,) = score_chunks({"a": models["a"]}, plan.only([number]))
        np.testing.assert_array_equal(alone["a"].probabilities, part.probabilities)
        assert alone["a"].keys == part.keys == [digits.splits["val"].keys[i] for i in chunks[number]]


def scores_of_pieces(model, plan, most: int):
    """Return the scores of the plan's chunks, each cut into up to ``most`` pieces, and how many pieces there were."""
    cut = [pieces(plan, number, most) for number in range(len(plan.chunks))]
    for chunk, own in zip(plan.chunks, cut, strict=True):
        np.testing.assert_array_equal(np.concatenate(own), chunk)
    every = [piece for own in cut for piece in own]
    found = score_chunks({"a": model}, dataclasses.replace(plan, chunks=every))
    return merge_scores([part["a"] for part in found], plan.keys).probabilities, len(every)


@pytest.mark.parametrize("name", ["center", "10-crop"])
def test_pieces_of_a_chunk_have_its_batches_and_so_its_bits(digits, name, monkeypatch):
    views = 1 if name == "center" else 5
    monkeypatch.setattr(scoring, "_BATCH_PIXELS", 7 * views * 16 * 16)  # seven images, passes of which differ in size
    sizes, real = [], scoring.Passes.average
    monkeypatch.setattr(
        scoring.Passes, "average", lambda own, net, v, **o: sizes.append(len(v)) or real(own, net, v, **o)
    )
    model, indices = network(1), chosen_samples(len(digits.splits["val"]), 100)
    plan = plan_chunks(digits, "val", protocol_of(name, VIEWS), indices, chunk_pixels=60 * 2 * views * 16 * 16)
    whole = merge_scores([part["a"] for part in score_chunks({"a": model}, plan)], plan.keys).probabilities
    batches = list(sizes)
    for most in (1, 2, 5, 99):
        sizes.clear()
        found, count = scores_of_pieces(model, plan, most)
        assert sizes == batches and count == min(most * len(plan.chunks), len(batches))
        np.testing.assert_array_equal(found, whole)


@pytest.mark.slow
def test_pieces_of_whole_images_begin_where_the_size_changes(photographs, monkeypatch):
    monkeypatch.setattr(scoring, "_BATCH_PIXELS", 2 * 70 * 70)
    torch.manual_seed(0)
    model = Classifier(Normalize(torch.tensor([90.0] * 3)), build_model("cifar-resnet8", num_classes=2)).eval()
    protocol = protocol_of("multi-scale", ViewConfig(crop=32, resize=36), scales=[40, 64])
    indices = np.arange(len(photographs.splits["val"]))
    plan = plan_chunks(photographs, "val", protocol, indices)
    (whole,) = score_chunks({"a": model}, plan)
    samples = photographs.splits["val"]
    shapes = {tuple(size) for size in np.stack([samples.width, samples.height], 1).tolist()}
    found, count = scores_of_pieces(model, plan, 99)
    assert 1 < count <= len(shapes)
    np.testing.assert_array_equal(found, merge_scores([whole["a"]], plan.keys).probabilities)


@pytest.mark.slow
def test_a_forward_pass_has_at_most_the_pixels_it_may(digits, monkeypatch):
    monkeypatch.setitem(PASS_PIXELS, "cpu", 4 * 20 * 20)
    model, shapes = network(1), []
    model.normalize.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    for name in ("10-crop", "multi-scale"):
        evaluate({"a": model}, digits, protocol_of(name, VIEWS), images=30)
    assert max(n * h * w for n, h, w, _ in shapes) <= 4 * 20 * 20
    assert sum(n * (h == 20) for n, h, _, _ in shapes) == 60, "each image and its mirror image once"
    monkeypatch.setitem(PASS_PIXELS, "cpu", 1)
    evaluate({"a": model}, digits, protocol_of("multi-scale", VIEWS), images=3)
    assert {n for n, *_ in shapes[-12:]} == {1}


@pytest.mark.slow
def test_models_together_score_as_alone(digits):
    models = {"a": network(1), "b": network(2)}
    together = evaluate(models, digits, protocol_of("10-crop", VIEWS))
    for name, model in models.items():
        alone = evaluate({name: model}, digits, protocol_of("10-crop", VIEWS))[name]
        np.testing.assert_array_equal(together[name].probabilities, alone.probabilities)
    assert len(together["a"].labels) == len(digits.splits["val"])
    np.testing.assert_allclose(together["a"].probabilities.sum(1), 1, atol=1e-5)


def test_protocols_are_the_paper_s_for_imagenet():
    views = ViewConfig(crop=224, resize=256)
    assert protocol_of("10-crop", views).sides == (256,) and protocol_of("10-crop", views).mirror
    assert protocol_of("multi-scale", views).sides == (224, 256, 384, 480, 640)
    ids = {protocol_of(name, views).id for name in ("center", "10-crop", "multi-scale")}
    assert len(ids) == 3
    with pytest.raises(UserError, match="10-crop"):
        protocol_of("10crop", views)


def test_any_scales_may_be_named():
    views = ViewConfig(crop=224, resize=256)
    own = protocol_of("multi-scale", views, scales=[384, 256])
    assert own.sides == (256, 384) and own == protocol_of("multi-scale", views, scales=[256, 384])
    assert protocol_of("10-crop", views, scales=[256]) == protocol_of("10-crop", views)
    for scales, said in (([200], "scale 200"), ([256, 256], "twice")):
        with pytest.raises(UserError, match=said):
            protocol_of("multi-scale", views, scales=scales)
    with pytest.raises(UserError, match="softmax or logits"):
        protocol_of("center", views, average="logit")


def test_class_counts_must_match(digits):
    with pytest.raises(UserError, match="7 classes"):
        evaluate({"a": network(0, classes=7)}, digits, protocol_of("center", VIEWS))


def test_chosen_samples_are_evenly_spaced_and_distinct():
    assert chosen_samples(10, None).tolist() == list(range(10)) == chosen_samples(10, 99).tolist()
    assert chosen_samples(10, 4).tolist() == [0, 2, 5, 7]
