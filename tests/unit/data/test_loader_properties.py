"""Whatever the number of workers, threads, batches ahead, or the first step: a position's bytes are the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import train_batches, view_batches
from resnet_pipeline.errors import UserError
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train

SMALL, LARGE = 48, 72  # resized by DALI, and by PyTorch
few = settings(max_examples=12, deadline=None, derandomize=True)


def augmentation(kind, crop):
    return AugmentConfig(kind=kind, crop=crop, shorter_side=(crop + 8, 3 * crop), color=0.1)


@cache
def one_by_one(path: Path, kind: str, crop: int, positions: int):
    """Return (image, colour offset, sample number) of each position, in one stream of one thread."""
    options = {"seed": 11, "batch": 1, "micro_batch": 1, "threads": 1, "prefetch": 1}
    with train_batches(Dataset.open(path), augment=augmentation(kind, crop), steps=positions, **options) as batches:
        return [(b.images[0], b.color[0], int(b.index[0])) for b in batches]


@pytest.mark.slow
@given(
    kind=st.sampled_from(["scale-crop", "random-resized-crop"]),
    crop=st.sampled_from([SMALL, LARGE]),
    world=st.integers(1, 4),
    micro_batch=st.integers(1, 5),
    micros=st.integers(1, 5),
    threads=st.integers(1, 3),
    prefetch=st.integers(1, 4),
    start=st.integers(0, 3),
    steps=st.integers(0, 3),
)
@few
def test_a_position_has_the_same_bytes_however_it_is_reached(
    photo_set, kind, crop, world, micro_batch, micros, threads, prefetch, start, steps
):
    expected = one_by_one(photo_set.path, kind, crop, 150)
    batch = micro_batch * micros
    seen = []
    for rank in range(world):
        owned = [(s, m) for s in range(start, start + steps) for m in range(rank, micros, world)]
        with train_batches(
            photo_set,
            augment=augmentation(kind, crop),
            seed=11,
            batch=batch,
            micro_batch=micro_batch,
            rank=rank,
            world=world,
            start_step=start,
            steps=steps,
            threads=threads,
            prefetch=prefetch,
        ) as found:
            for (step, micro), part in zip(owned, found, strict=True):
                first = step * batch + micro * micro_batch
                for row, position in enumerate(range(first, first + micro_batch)):
                    image, color, index = expected[position]
                    assert torch.equal(part.images[row], image)
                    assert torch.equal(part.color[row], color)
                    assert int(part.index[row]) == index
                    seen.append(position)
    assert sorted(seen) == list(range(start * batch, (start + steps) * batch)), "each once, on any number of workers"


@pytest.mark.slow
def test_each_epoch_of_that_stream_has_every_sample_once(photo_set):
    count = len(photo_set.splits["train"])
    samples = [index for _, _, index in one_by_one(photo_set.path, "scale-crop", SMALL, 150)]
    for epoch in range(150 // count):
        assert sorted(samples[epoch * count : (epoch + 1) * count]) == list(range(count))


@pytest.mark.slow
@given(
    views=st.sampled_from(["center", "10-crop", "whole"]),
    crop=st.sampled_from([SMALL, LARGE]),
    world=st.integers(1, 12),
    batch_size=st.integers(1, 7),
)
@few
def test_evaluation_sees_each_sample_once_on_any_number_of_workers(photo_set, views, crop, world, batch_size):
    seen = []
    for rank in range(world):
        options = {"split": "val", "views": views, "resize": 80, "crop": crop, "batch_size": batch_size}
        with view_batches(photo_set, rank=rank, world=world, threads=1, **options) as found:
            for batch in found:
                assert len(batch.images) == len(batch.labels) == len(batch.index) <= batch_size
                seen += batch.index.tolist()
    assert sorted(seen) == list(range(len(photo_set.splits["val"])))


@pytest.mark.slow
def test_a_recipe_can_take_random_resized_crops(make_run, digits):
    torch.set_num_threads(1)
    run = make_run("augment.kind=random-resized-crop", "augment.area=[0.25, 1.0]", "steps=2", "bn_images=0")
    assert train(run, digits, LocalContext())
    assert run.config().augment.kind == "random-resized-crop" and run.result().steps == 2


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
@pytest.mark.parametrize("name", ["RESNET_PIPELINE_LOADER_THREADS", "RESNET_PIPELINE_LOADER_PREFETCH"])
def test_settings_of_the_environment_are_checked(photo_set, monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    options = {"augment": augmentation("scale-crop", LARGE), "seed": 0, "batch": 2, "micro_batch": 2, "steps": 1}
    with pytest.raises(UserError, match=name), train_batches(photo_set, **options) as batches:
        next(batches)


@pytest.mark.slow
@pytest.mark.parametrize("crop", [SMALL, LARGE])
def test_memory_does_not_grow_over_many_epochs(photo_set, crop):
    count = len(photo_set.splits["train"])
    options = {"augment": augmentation("scale-crop", crop), "seed": 0, "batch": count, "micro_batch": count // 4}
    after = []
    with train_batches(photo_set, steps=120, threads=2, **options) as batches:
        for number, _ in enumerate(batches):
            if number % 40 == 39:  # every ten epochs
                after.append(allocated())
    # keeping the batches of an epoch alone would add 24 * 3 * crop² bytes to each of the last hundred
    assert after[-1] - after[1] < 100 * count * 3 * crop**2 / 4


def allocated() -> int:
    """Return the bytes of resident memory that belong to no file."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024
