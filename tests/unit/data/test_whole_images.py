from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_pipeline.data.crops import resized_sizes
from resnet_pipeline.data.loaders import view_batches
from resnet_pipeline.data.whole_images import by_shape, whole_batches
from resnet_pipeline.staging.stage import stage

SIDES = (96, 130, 210)


@pytest.fixture
def photo_set(photos, tmp_path):
    return stage(photos, tmp_path / "datasets" / "photos", name="photos", workers=1)


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_every_image_at_every_side_is_pillow_s(photo_set, backend):
    split = photo_set.splits["train"]
    chosen = np.arange(0, len(split), 2)
    chosen = chosen[by_shape(split.width[chosen], split.height[chosen])]
    seen = []
    with whole_batches(
        photo_set, split="train", sides=SIDES, indices=chosen, batch_size=5, batch_pixels=60_000, backend=backend
    ) as batches:
        for batch in batches:
            seen += [(int(i), batch.side) for i in batch.index]
            height, width = batch.images.shape[1:3]
            assert min(height, width) == SIDES[batch.side]
            assert len(batch.images) == 1 or len(batch.images) * height * width <= 60_000
            for image, index in zip(batch.images, batch.index, strict=True):
                original = Image.open(io.BytesIO(split.encoded(int(index)).tobytes()))
                expected = torch.from_numpy(np.array(original.resize((width, height), Image.Resampling.BILINEAR)))
                difference = (image.int() - expected.int()).abs().float()
                # Pillow's antialiased bilinear resize rounds to 8 bits between its two passes
                assert difference.mean() < 0.6 and difference.max() <= 6
    assert sorted(seen) == sorted((int(i), s) for i in chosen for s in range(len(SIDES)))


@pytest.mark.slow
def test_images_of_one_size_share_batches(photo_set, digits):
    split = digits.splits["val"]
    with whole_batches(
        digits, split="val", sides=(32, 40), indices=np.arange(len(split)), batch_size=16, batch_pixels=64 * 40 * 40
    ) as batches:
        counts = [(batch.side, len(batch.index)) for batch in batches]
    assert max(n for side, n in counts if side == 1) == 64, "more than are decoded at a time"
    assert max(n for side, n in counts if side == 0) == 100
    assert len(counts) == -(-len(split) // 64) + -(-len(split) // 100)


def test_by_shape_puts_equal_sizes_beside_each_other():
    rng = np.random.default_rng(0)
    width, height = rng.integers(20, 60, (2, 500)).astype(np.int32)
    order = by_shape(width, height)
    assert sorted(order) == list(range(500))
    for side in (16, 31, 97):
        sizes = [tuple(s) for s in resized_sizes(width[order], height[order], side)]
        groups = 1 + sum(a != b for a, b in zip(sizes[1:], sizes[:-1], strict=True))
        assert groups == len(set(sizes))


def test_it_is_the_view_loader_s_resize(photo_set):
    index = np.arange(3)
    with view_batches(
        photo_set, split="val", views="center", resize=128, crop=96, batch_size=3, indices=index
    ) as views:
        (crops,) = views
    with whole_batches(photo_set, split="val", sides=(128,), indices=index, batch_pixels=1) as batches:
        for batch in batches:
            height, width = batch.images.shape[1:3]
            y, x = round((height - 96) / 2), round((width - 96) / 2)
            crop = crops.images[crops.index == batch.index[0], 0]
            assert torch.equal(batch.images[:, y : y + 96, x : x + 96], crop)
