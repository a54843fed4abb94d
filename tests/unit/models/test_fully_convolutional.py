from __future__ import annotations

import pytest
import torch
from torch import nn

from resnet_pipeline.errors import UserError
from resnet_pipeline.models import Classifier, Normalize, build_model, fully_convolutional


def classifier_of(name, **options):
    torch.manual_seed(0)
    normalize = Normalize(torch.tensor([120.0, 110.0, 100.0]), torch.tensor([58.0, 57.0, 57.0]))
    return Classifier(normalize, build_model(name, num_classes=5, **options)).eval()


def randint(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "crop", "height", "width", "positions"),
    [
        ("resnet18", {}, 224, 256, 288, (2, 3)),
        ("resnet18", {"pooling": "caffe"}, 224, 224, 320, (1, 4)),
        ("resnet50", {"pooling": "caffe"}, 225, 257, 225, (2, 1)),
        ("plain18", {}, 224, 225, 224, (2, 1)),
        ("cifar-resnet8", {}, 32, 36, 40, (2, 3)),
        ("cifar-highway8", {}, 16, 20, 16, (2, 1)),
    ],
)
def test_it_slides_the_classifier_over_the_features(name, options, crop, height, width, positions):
    classifier = classifier_of(name, **options)
    dense = fully_convolutional(classifier, crop=crop).eval()
    images = randint(2, height, width, 3)
    with torch.inference_mode():
        scores = dense(images)
        assert scores.shape == (2, 5, *positions)
        features = classifier.network.features(classifier.normalize(images))
        window = classifier.network.features(classifier.normalize(randint(1, crop, crop, 3))).shape[2]
        slow = [
            classifier.network.fc(features[:, :, y : y + window, x : x + window].mean(dim=(2, 3)))
            for y in range(positions[0])
            for x in range(positions[1])
        ]
        torch.testing.assert_close(scores.mean(dim=(2, 3)), torch.stack(slow).mean(0), rtol=1e-4, atol=1e-5)
        images = images[:, :crop, :crop]
        torch.testing.assert_close(dense(images)[:, :, 0, 0], classifier(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cifar-resnet14", "cifar-plain8"])
def test_it_equals_the_classifier_on_crops_without_crossed_edges(name):
    classifier = classifier_of(name)
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d):  # only the middle of each 3×3 kernel: padding is never seen
            middle = module.weight.data[:, :, 1, 1].clone()
            module.weight.data.zero_()[:, :, 1, 1] = middle
    images = randint(2, 28, 36, 3)
    with torch.inference_mode():
        scores = fully_convolutional(classifier, crop=16)(images)
        assert scores.shape == (2, 5, 4, 6)
        for y in range(4):
            for x in range(6):  # one step of the last map is four pixels
                crop = images[:, 4 * y : 4 * y + 16, 4 * x : 4 * x + 16]
                torch.testing.assert_close(scores[:, :, y, x], classifier(crop), rtol=1e-4, atol=1e-5)


def test_the_weights_are_shared():
    classifier = classifier_of("cifar-resnet8")
    dense = fully_convolutional(classifier, crop=32)
    assert {id(p) for p in dense.parameters()} == {id(p) for p in classifier.parameters()}


def test_an_image_smaller_than_the_crop_is_refused():
    dense = fully_convolutional(classifier_of("cifar-resnet8"), crop=32)
    with pytest.raises(UserError, match="28 × 40 pixels"):
        dense(randint(1, 28, 40, 3))
