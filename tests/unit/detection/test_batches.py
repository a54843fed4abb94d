"""Images with objects as a detector gets them: sizes, flips and masks against slow versions."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.detection.batches import detector_sizes, mask_of, object_batches, split_batches, target_of
from resnet_pipeline.errors import UserError
from tests.unit.detection.test_metrics import image as objects_of

AUGMENT = AugmentConfig(kind="whole-image", crop=56, shorter_side=(40, 80))


def batches(dataset, **options):
    defaults = {"augment": AUGMENT, "longest": 100, "masks": True, "seed": 3, "batch": 4, "micro_batch": 2, "steps": 3}
    with object_batches(dataset, **{**defaults, **options}) as loader:
        return list(loader)


def test_sizes_are_those_of_fast_r_cnn():
    for width, height in ((640, 480), (500, 375), (375, 500), (1000, 100), (64, 48), (333, 500)):
        scale = min(600 / min(width, height), 1000 / max(width, height))
        ours = detector_sizes(np.array([width], np.int32), np.array([height], np.int32), np.array([600]), 1000)
        assert ours[0].tolist() == pytest.approx([height * scale, width * scale], abs=1)
        assert ours.max() <= 1000 and ours.min() <= 600


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_objects_stand_where_they_stand_in_the_image(scenes, backend):
    colors = ((230, 60, 60), (60, 60, 230))
    for batch in batches(scenes, backend=backend):
        for image, target in zip(batch.images, batch.targets, strict=True):
            height, width, _ = image.shape
            assert 40 <= min(height, width) <= 80 and len(target["boxes"]) == len(target["labels"]) >= 1
            assert target["masks"].shape == (len(target["labels"]), height, width)
            for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
                left, top, right, bottom = box.round().long().tolist()
                inside = image[top + 2 : bottom - 2, left + 2 : right - 2].float()
                assert (inside - torch.tensor(colors[label - 1])).abs().max() < 12, "of its colour"
                drawn = torch.zeros(height, width)
                drawn[top:bottom, left:right] = 1
                assert (drawn != mask).float().mean() < 0.02


def test_what_a_position_gets_depends_on_seed_and_position_alone(scenes):
    whole = batches(scenes)
    assert [b.position for b in whole] == [0, 2, 4, 6, 8, 10]
    second = batches(scenes, start_step=1, steps=2)
    shared = [b for rank in (0, 1) for b in batches(scenes, rank=rank, world=2)]
    for part in (second, sorted(shared, key=lambda b: b.position)[2:]):
        for one, other in zip(whole[2:], part, strict=True):
            assert one.index.tolist() == other.index.tolist()
            assert all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))
            assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(one.targets, other.targets, strict=True))
    epoch = [i for b in whole for i in b.index.tolist()]
    assert sorted(epoch) == list(range(12)), "each image once"
    other = batches(scenes, seed=4)
    assert [b.index.tolist() for b in other] != [b.index.tolist() for b in whole]


def test_a_mirrored_image_has_mirrored_objects(scenes):
    mirrored = AugmentConfig(kind="whole-image", crop=56, shorter_side=(56, 56))
    plain = AugmentConfig(kind="whole-image", crop=56, shorter_side=(56, 56), flip=False)
    seen = set()
    for one, other in zip(
        batches(scenes, augment=mirrored, steps=6), batches(scenes, augment=plain, steps=6), strict=True
    ):
        for i, target in enumerate(one.targets):
            same = torch.equal(one.images[i], other.images[i])
            seen.add(same)
            if not same:
                assert torch.equal(one.images[i], other.images[i].flip(1))
                width = one.images[i].shape[1]
                boxes = other.targets[i]["boxes"]
                expected = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
                assert torch.equal(target["boxes"], expected)
                assert torch.equal(target["masks"], other.targets[i]["masks"].flip(2))
    assert seen == {True, False}


def test_crowds_are_no_targets_and_no_objects_are_none():
    found = objects_of([[0, 0, 4, 4], [5, 5, 9, 9]], [0, 1])
    found.crowd[1] = True
    target = target_of(found, (20, 20), (2.0, 2.0), flip=False, masks=True)
    assert target["boxes"].tolist() == [[0, 0, 8, 8]] and target["labels"].tolist() == [1]
    assert target["masks"].sum() == 64, "without a mask it is the box"
    empty = target_of(objects_of([], []), (20, 20), (1.0, 1.0), flip=True, masks=True)
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 20, 20)


def test_run_lengths_are_drawn_as_they_are():
    drawn = np.zeros((10, 12), np.uint8)
    drawn[2:7, 3:9] = 1
    runs = [int(n) for n in np.diff(np.flatnonzero(np.diff(np.concatenate([[-1], drawn.T.reshape(-1), [-1]]))))]
    counts = [] if drawn[0, 0] == 0 else [0]
    found = objects_of([[3, 2, 9, 7]], [0])
    found.mask[0] = f'{{"size": [10, 12], "counts": {counts + runs}}}'
    assert (mask_of(found, 0, (10, 12), (1.0, 1.0)) == drawn).all()
    doubled = mask_of(found, 0, (20, 24), (2.0, 2.0))
    assert (doubled == np.asarray(Image.fromarray(drawn).resize((24, 20), Image.Resampling.NEAREST))).all()


def test_each_test_image_comes_once_at_its_size(scenes):
    with split_batches(scenes, split="val", shorter_side=56, longest=100, batch_size=4) as loader:
        found = list(loader)
    assert [i for b in found for i in b.index.tolist()] == list(range(6)) and all(not b.targets for b in found)
    pixels = np.asarray(Image.open(io.BytesIO(scenes.splits["val"].encoded(0).tobytes())).convert("RGB"))
    assert (found[0].images[0].numpy() == pixels).all()
    parts = []
    for rank in range(4):
        with split_batches(
            scenes, split="val", shorter_side=28, longest=100, batch_size=4, rank=rank, world=4
        ) as loader:
            parts += [i for b in loader for i in b.index.tolist()]
    assert sorted(parts) == list(range(6))


def test_a_dataset_without_boxes_is_refused(digits):
    with pytest.raises(UserError, match=r"dataset 'digits' \(image folder\) has no boxes, which detection needs"):
        batches(digits)
    with pytest.raises(UserError, match="split 'other' of dataset 'digits' has no images"):
        batches(digits, split="other")
