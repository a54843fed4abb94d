from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.data import loaders
from resnet_pipeline.data.crops import plan_crops
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import train_batches, view_batches
from resnet_pipeline.errors import UserError

SCALE = AugmentConfig(kind="scale-crop", crop=96, shorter_side=(110, 200), color=0.1)
RESIZED = AugmentConfig(kind="random-resized-crop", crop=96)
SMALL = AugmentConfig(kind="scale-crop", crop=48, shorter_side=(56, 400))  # resized by DALI on the CPU too
PAD = AugmentConfig(kind="pad-crop", crop=24, pad=4)


def batches(dataset, augment, **options):
    with train_batches(
        dataset, **{"augment": augment, "seed": 3, "batch": 8, "micro_batch": 4, "steps": 4, **options}
    ) as found:
        return list(found)


def difference(a, b):
    return (a.int() - b.int()).abs().float()


@pytest.mark.parametrize("augment", [SCALE, SMALL, PAD])
def test_each_way_that_a_gpu_s_crops_may_be_decoded_makes_the_same_on_the_cpu(photo_set, monkeypatch, augment):
    expected = batches(photo_set, augment, backend="dali")
    for way in ("whole", "cpu"):
        monkeypatch.setenv("RESNET_PIPELINE_GPU_DECODING", way)
        for one, other in zip(batches(photo_set, augment, backend="dali"), expected, strict=True):
            assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("augment", [SCALE, RESIZED, SMALL])
def test_dali_and_torchvision_make_the_same_crops(photo_set, augment):
    for ours, slow in zip(
        batches(photo_set, augment, backend="dali"), batches(photo_set, augment, backend="torch"), strict=True
    ):
        assert torch.equal(ours.labels, slow.labels) and torch.equal(ours.index, slow.index)
        assert torch.equal(ours.color, slow.color)
        # two antialiased triangle filters in fixed and floating point, two JPEG decoders
        assert difference(ours.images, slow.images).mean() < 0.5
        assert difference(ours.images, slow.images).max() <= 8


@pytest.mark.parametrize("crop", [48, 96], ids=["DALI's resize", "PyTorch's resize"])
def test_crops_are_pillow_s_both_shrunk_and_enlarged(photo_set, crop):
    augment = AugmentConfig(kind="scale-crop", crop=crop, shorter_side=(crop + 10, 6 * crop))
    train, shrunk, enlarged = photo_set.splits["train"], 0, 0
    for number, batch in enumerate(batches(photo_set, augment, backend="dali")):
        plan = plan_crops(
            augment, seed=3, positions=np.arange(4 * number, 4 * number + 4), index=batch.index.numpy(),
            width=train.width[batch.index], height=train.height[batch.index], color_basis=np.zeros((3, 3)),
        )  # fmt: skip
        for ours, index, (y, x, h, w), flip in zip(batch.images, batch.index, plan.window, plan.flip, strict=True):
            image = Image.open(io.BytesIO(train.encoded(int(index)).tobytes())).crop((x, y, x + w, y + h))
            image = image.resize((crop, crop), Image.Resampling.BILINEAR)
            expected = torch.from_numpy(np.array(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image))
            # one unit of rounding; DALI's filter is in floating point, Pillow's and PyTorch's round between the passes
            assert difference(ours, expected).mean() < (0.6 if crop == 48 else 0.1)
            assert difference(ours, expected).max() <= (6 if crop == 48 else 1)
            shrunk, enlarged = shrunk + (h > crop), enlarged + (h < crop)
    assert shrunk > 5 and enlarged > 5


def test_pad_crop_is_torchvision_s_pad_and_crop_to_the_bit(digits):
    # images of the crop's own size are not resized, so nothing may differ
    fill = [int(v) for v in np.rint(digits.statistics.mean_rgb)]
    train = digits.splits["train"]
    for backend in ("dali", "torch"):
        for batch in batches(digits, PAD, backend=backend):
            positions = np.arange(8)
            assert batch.images.shape[1:] == (24, 24, 3)
        first = batches(digits, PAD, backend=backend)[0]
        plan = plan_crops(
            PAD, seed=3, positions=positions[:4], index=first.index.numpy(), width=train.width[first.index],
            height=train.height[first.index], color_basis=np.zeros((3, 3)),
        )  # fmt: skip
        for image, index, window, flip in zip(first.images, first.index, plan.window, plan.flip, strict=True):
            original = torch.from_numpy(np.array(Image.open(io.BytesIO(train.encoded(int(index)).tobytes())))).permute(
                2, 0, 1
            )
            padded = v2.functional.pad(original, [4, 4, 4, 4], fill=fill)
            y, x = window[0] + 4, window[1] + 4
            expected = padded[:, y : y + 24, x : x + 24]
            assert torch.equal(image, (expected.flip(2) if flip else expected).permute(1, 2, 0))


@pytest.mark.slow
def test_every_sample_once_per_epoch_over_uneven_batches(digits):
    count = len(digits.splits["train"])
    seen = torch.cat([b.index for b in batches(digits, PAD, batch=64, micro_batch=64, steps=2 * count // 64 + 1)])
    assert sorted(seen[:count].tolist()) == sorted(seen[count : 2 * count].tolist()) == list(range(count))


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_bytes_do_not_depend_on_workers_threads_prefetch_or_start(photo_set, backend):
    whole = batches(photo_set, SCALE, backend=backend)
    others = {
        "threads": batches(photo_set, SCALE, backend=backend, threads=2, prefetch=3),
        "resumed": whole[:4] + batches(photo_set, SCALE, backend=backend, start_step=2, steps=2),
    }
    ranks = [batches(photo_set, SCALE, backend=backend, rank=r, world=2) for r in range(2)]
    others["world"] = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    for what, found in others.items():
        assert len(found) == len(whole)
        for a, b in zip(found, whole, strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.color, b.color), what


@pytest.mark.parametrize("backend", ["dali", "torch"])
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("views", ["center", "10-crop"])
def test_evaluation_neither_pads_nor_drops(photo_set, backend, world, views):
    seen = []
    for rank in range(world):
        with view_batches(
            photo_set,
            split="val",
            views=views,
            resize=110,
            crop=96,
            batch_size=4,
            rank=rank,
            world=world,
            backend=backend,
        ) as found:
            for batch in found:
                assert len(batch.images) == len(batch.labels) == len(batch.index) <= 4
                assert torch.equal(batch.labels, torch.from_numpy(photo_set.splits["val"].labels)[batch.index])
                seen += batch.index.tolist()
    assert sorted(seen) == list(range(len(photo_set.splits["val"])))


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_of_large_images_fewer_are_decoded_at_once_and_they_are_the_same(photo_set, monkeypatch, backend):
    split = photo_set.splits["val"]
    options = {"split": "val", "views": "center", "resize": 110, "crop": 96, "batch_size": 64, "backend": backend}
    with view_batches(photo_set, **options) as found:
        (whole,) = found
    pixels = split.width.astype(int) * split.height
    most = int(pixels.max()) * 3 // 2
    monkeypatch.setattr(loaders, "_DECODED_PIXELS", most)
    with view_batches(photo_set, **options) as found:
        cut = list(found)
    assert all(len(batch.index) == 1 or pixels[batch.index].sum() <= most for batch in cut) and len(cut) > 1
    assert torch.equal(torch.cat([batch.images for batch in cut]), whole.images)
    assert torch.equal(torch.cat([batch.index for batch in cut]), whole.index)


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_views_are_those_of_pillow_and_torchvision(photo_set, backend):
    split = photo_set.splits["val"]
    with view_batches(
        photo_set, split="val", views="10-crop", resize=128, crop=112, batch_size=10, backend=backend
    ) as found:
        (batch,) = found
    transform = v2.Compose([v2.Resize(128), v2.FiveCrop(112)])
    for views, index in zip(batch.images, batch.index, strict=True):
        image = Image.open(io.BytesIO(split.encoded(int(index)).tobytes()))
        expected = torch.stack([torch.from_numpy(np.array(crop)) for crop in transform(image)])
        # Pillow's antialiased bilinear resize rounds to 8 bits between its two passes
        assert difference(views, expected).mean() < 0.6
        assert difference(views, expected).max() <= 6


@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_a_sample_that_changed_after_staging_is_named(photo_set, tmp_path, backend):
    photo_set = Dataset.open(shutil.copytree(photo_set.path, tmp_path / "photos"))
    sample = 5
    split = photo_set.splits["train"]
    view = split.encoded(sample)
    offset = view.__array_interface__["data"][0] - split.files.mapped(0).__array_interface__["data"][0]
    shard = photo_set.path / "shards" / split.shard_of(sample)
    with shard.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * len(view))
    with pytest.raises(UserError) as error:
        batches(photo_set, SCALE, steps=6, backend=backend)
    assert split.keys[sample] in str(error.value) and shard.name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_loader_can_be_closed_early_and_asked_for_nothing(photo_set):
    loader = train_batches(photo_set, augment=SCALE, seed=0, batch=4, micro_batch=4, steps=100)
    next(loader)
    loader.close()
    assert list(loader) == []
    assert batches(photo_set, SCALE, steps=0) == []
