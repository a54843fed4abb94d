from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_pipeline.config import ViewConfig
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.evaluate import chosen_samples, evaluate
from resnet_pipeline.evaluation.views import protocol_of
from resnet_pipeline.models import Classifier, Normalize, build_model, fully_convolutional

VIEWS = ViewConfig(crop=16, resize=18, scales=(16, 20))


def network(seed: int, classes: int = 10) -> Classifier:
    torch.manual_seed(seed)
    return Classifier(
        Normalize(torch.tensor([90.0, 90.0, 90.0])), build_model("cifar-resnet8", num_classes=classes)
    ).eval()


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


@pytest.mark.parametrize("name", ["center", "10-crop", "multi-scale"])
def test_scores_are_those_of_the_slow_way(digits, name):
    model = network(0)
    scores = evaluate({"a": model}, digits, protocol_of(name, VIEWS), images=40, batch_size=16, backend="torch")["a"]
    assert scores.keys == [digits.splits["val"].keys[i] for i in chosen_samples(len(digits.splits["val"]), 40)]
    with torch.inference_mode():
        expected = [slow(model, digits, name, int(i)) for i in chosen_samples(len(digits.splits["val"]), 40)]
    np.testing.assert_allclose(scores.probabilities, expected, atol=1e-5)
    dali = evaluate({"a": model}, digits, protocol_of(name, VIEWS), images=40, backend="dali")["a"]
    # the decoders and resizers differ by a level or two of 255
    np.testing.assert_allclose(dali.probabilities, expected, atol=0.02)


def test_models_together_score_as_alone(digits):
    models = {"a": network(1), "b": network(2)}
    together = evaluate(models, digits, protocol_of("10-crop", VIEWS), batch_size=64)
    for name, model in models.items():
        alone = evaluate({name: model}, digits, protocol_of("10-crop", VIEWS), batch_size=64)[name]
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


def test_class_counts_must_match(digits):
    with pytest.raises(UserError, match="7 classes"):
        evaluate({"a": network(0, classes=7)}, digits, protocol_of("center", VIEWS))


def test_chosen_samples_are_evenly_spaced_and_distinct():
    assert chosen_samples(10, None).tolist() == list(range(10)) == chosen_samples(10, 99).tolist()
    assert chosen_samples(10, 4).tolist() == [0, 2, 5, 7]
