from __future__ import annotations

import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_pipeline.data.crops import Plan, plan_views, resized_sizes
from resnet_pipeline.data.resize import Resizer

SIZES = [(1, 1), (224, 224), (100, 100), (301, 300), (900, 17), (223, 225)]


@pytest.fixture
def images():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def by_pillow(image, height, width):
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)).astype(int)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_crops_are_pillow_s_give_or_take_one(images, threads):
    count = len(images)
    flip = np.arange(count) % 2 == 0
    window = np.array([(0, 0, *size) for size in SIZES])
    plan = Plan(np.arange(count), window, 224, flip, np.zeros((count, 3), np.float32))
    with closing(Resizer(threads)) as resizer:
        crops = resizer.crops(plan, images)
    assert crops.shape == (count, 224, 224, 3) and crops.dtype == torch.uint8 and crops.is_contiguous()
    for crop, image, mirrored in zip(crops.numpy().astype(int), images, flip, strict=True):
        expected = by_pillow(image, 224, 224)
        assert abs(crop - (expected[:, ::-1] if mirrored else expected)).max() <= 1
    assert (crops[1].numpy() == images[1]).all(), "nothing to resize, nothing changed"


def test_views_are_cut_from_pillow_s_resize(images):
    height, width = (np.array([size[axis] for size in SIZES[1:4]], np.int32) for axis in (0, 1))
    resized = resized_sizes(width, height, 128)
    plan = plan_views("10-crop", index=np.arange(3), resized=resized, crop=96)
    with closing(Resizer(2)) as resizer:
        views = resizer.views(plan, images[1:4]).numpy().astype(int)
    for found, image, size, corners in zip(views, images[1:4], resized, plan.corners, strict=True):
        whole = by_pillow(image, *size)
        for view, (y, x) in zip(found, corners, strict=True):
            assert abs(view - whole[y : y + 96, x : x + 96]).max() <= 1


def test_its_threads_work_alone_and_others_keep_their_number():
    torch.set_num_threads(3)
    with closing(Resizer(2)) as resizer:
        assert set(resizer._pool.map(lambda _: torch.get_num_threads(), range(8))) == {1}
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert elsewhere == [3] and torch.get_num_threads() == 3
