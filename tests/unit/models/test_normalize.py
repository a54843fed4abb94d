from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_pipeline.models import Classifier, Normalize, build_model


def randint(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 3), h=st.integers(1, 6), w=st.integers(1, 6), image=st.booleans(), std=st.booleans(),
    color=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_it_subtracts_the_mean_adds_the_color_and_divides(n, h, w, image, std, color, seed):
    torch.manual_seed(seed)
    images, mean = randint(n, h, w, 3), torch.rand(h, w, 3) * 255 if image else torch.rand(3) * 255
    deviation = torch.rand(3) * 50 + 20 if std else None
    offsets = torch.randn(n, 3) * 10 if color else None
    actual = Normalize(mean, deviation)(images, offsets)
    assert actual.shape == (n, 3, h, w) and actual.dtype == torch.float32
    for i in range(n):
        for y in range(h):
            for x in range(w):
                for c in range(3):
                    value = float(images[i, y, x, c]) - float(mean[y, x, c] if image else mean[c])
                    value += float(offsets[i, c]) if offsets is not None else 0
                    value /= float(deviation[c]) if deviation is not None else 1
                    assert actual[i, c, y, x].item() == pytest.approx(value, rel=1e-5, abs=1e-4)


def test_another_size_than_the_mean_image_s_gets_its_mean_color():
    mean = torch.rand(6, 5, 3) * 255
    images = randint(3, 8, 8, 3)
    torch.testing.assert_close(Normalize(mean)(images), Normalize(mean.mean((0, 1)))(images))


def test_the_result_is_channels_last_as_the_image_is():
    assert Normalize(torch.zeros(3))(randint(2, 8, 8, 3)).is_contiguous(memory_format=torch.channels_last)


def test_mean_and_std_are_of_the_state_not_of_the_learned_parameters():
    classifier = Classifier(Normalize(torch.rand(4, 4, 3), torch.ones(3)), build_model("cifar-resnet8"))
    assert {"normalize.mean", "normalize.std"} <= set(classifier.state_dict())
    assert not list(classifier.normalize.parameters())
    assert "normalize.std" not in Classifier(Normalize(torch.zeros(3)), build_model("cifar-resnet8")).state_dict()


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        (torch.zeros(4), None, r"mean must have shape \[3\] or \[H, W, 3\], not \[4\]"),
        (torch.zeros(3, 8, 8), None, r"not \[3, 8, 8\]"),
        (torch.zeros(3), torch.ones(1), r"std must have shape \[3\]"),
        (torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]), "std must be positive"),
    ],
)
def test_means_and_deviations_that_cannot_be_are_refused(mean, std, said):
    with pytest.raises(ValueError, match=said):
        Normalize(mean, std)


def test_a_classifier_is_its_network_after_its_preprocessing():
    classifier = Classifier(Normalize(torch.rand(8, 8, 3) * 200), build_model("cifar-resnet8")).eval()
    images, color = randint(2, 8, 8, 3), torch.randn(2, 3)
    assert torch.equal(classifier(images, color), classifier.network(classifier.normalize(images, color)))
    assert not torch.equal(classifier(images, color), classifier(images))
