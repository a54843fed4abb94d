from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.data.crops import plan_crops, plan_views, resized_sizes

KINDS = ["scale-crop", "random-resized-crop", "pad-crop"]
sizes = st.tuples(st.integers(1, 20_000), st.integers(1, 20_000))
BASIS = np.diag([10.0, 20.0, 30.0])


def plan(kind, positions, width, height, *, seed=0, crop=224, color=0.0):
    config = AugmentConfig(kind=kind, crop=crop, shorter_side=(crop, 2 * crop), color=color)
    count = len(positions)
    return plan_crops(
        config,
        seed=seed,
        positions=np.asarray(positions),
        index=np.arange(count),
        width=np.full(count, width, np.int32),
        height=np.full(count, height, np.int32),
        color_basis=BASIS,
    )


@pytest.mark.slow
@given(size=sizes, seed=st.integers(0, 2**63 - 1), kind=st.sampled_from(KINDS[:2]), crop=st.integers(1, 512))
@settings(max_examples=150, deadline=None)
def test_windows_lie_inside_the_image(size, seed, kind, crop):
    height, width = size
    window = plan(kind, range(50), width, height, seed=seed, crop=crop).window
    assert (window[:, :2] >= 0).all() and (window[:, 2:] >= 1).all()
    assert (window[:, 0] + window[:, 2] <= height).all()
    assert (window[:, 1] + window[:, 3] <= width).all()


@pytest.mark.slow
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**40), cut=st.integers(0, 64), size=sizes)
@settings(max_examples=60, deadline=None)
def test_a_position_has_the_same_crop_in_any_batch(kind, seed, cut, size):
    height, width = size
    whole = plan(kind, range(64), width, height, seed=seed, color=0.1)
    parts = [plan(kind, part, width, height, seed=seed, color=0.1) for part in (range(cut), range(cut, 64))]
    for name in ("window", "flip", "color"):
        joined = np.concatenate([getattr(p, name) for p in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name))


def test_scale_crop_covers_the_scales_evenly():
    window = plan("scale-crop", range(20_000), 600, 400).window
    # shorter side S uniform in 224..448 takes 224 / S of the shorter side of 400 pixels
    shorter = 224 * 400 / window[:, 2]
    assert abs(shorter.mean() - (224 + 448) / 2) < 2
    assert abs(shorter.std() - np.sqrt((225**2 - 1) / 12)) < 2
    assert (window[:, 2] == window[:, 3]).all()
    # places: from one edge to the other
    assert window[:, 1].min() == 0 and (window[:, 1] + window[:, 3]).max() == 600


@pytest.mark.slow
def test_random_resized_crop_has_torchvision_s_statistics():
    window = plan("random-resized-crop", range(8_000), 500, 375).window
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    transform = v2.RandomResizedCrop(224)
    theirs = np.array(
        [
            [p[k] for k in ("top", "left", "height", "width")]
            for p in (transform.make_params([image]) for _ in range(8_000))
        ]
    )
    for column in range(4):
        ours, other = np.sort(window[:, column]), np.sort(theirs[:, column])
        # Kolmogorov and Smirnov: the largest distance of the two distributions, 0.1 % level
        grid = np.union1d(ours, other)
        distance = np.abs(np.searchsorted(ours, grid, "right") - np.searchsorted(other, grid, "right")).max() / 8_000
        assert distance < 1.95 * np.sqrt(2 / 8_000)


def test_pad_crop_reaches_every_place_of_the_padded_image():
    window = plan("pad-crop", range(5_000), 32, 32, crop=32).window
    assert set(window[:, 0]) == set(window[:, 1]) == set(range(-4, 5))
    assert (window[:, 2:] == 32).all()


def test_flips_are_fair_and_color_noise_has_the_asked_covariance():
    result = plan("scale-crop", range(50_000), 300, 300, color=0.1)
    assert abs(result.flip.mean() - 0.5) < 0.01
    np.testing.assert_allclose(np.cov(result.color.T), np.diag([1.0, 4.0, 9.0]), atol=0.15)
    assert plan("scale-crop", range(10), 300, 300).color.max() == 0


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (224, 224), (333, 1001), (30, 17)])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (18, 16), (33, 32)])
def test_views_are_torchvision_s(size, resize, crop):
    height, width = size
    resized = resized_sizes(np.array([width], np.int32), np.array([height], np.int32), resize)
    image = torch.arange(resized[0].prod()).view(1, *resized[0].tolist())
    assert list(resized[0]) == list(F.resize(torch.zeros(1, height, width), [resize]).shape[1:])
    corners = plan_views("10-crop", index=np.arange(1), resized=resized, crop=crop).corners[0]
    for (y, x), theirs in zip(corners, F.five_crop(image, [crop, crop]), strict=True):
        assert torch.equal(image[:, y : y + crop, x : x + crop], theirs)
    ((y, x),) = plan_views("center", index=np.arange(1), resized=resized, crop=crop).corners[0]
    assert torch.equal(image[:, y : y + crop, x : x + crop], F.center_crop(image, [crop, crop]))
