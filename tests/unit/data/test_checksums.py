"""Every sample has a checksum, and every reader compares it."""

from __future__ import annotations

import io
import logging
import os
import shutil
import threading

import numpy as np
import pytest
import torch
import xxhash

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.data.checksums import CHECKSUMS, checksums_file, read_checksums, table_of
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.data.loaders import train_batches, view_batches
from resnet_pipeline.data.order import samples_at
from resnet_pipeline.data.shard_reader import CachedShards
from resnet_pipeline.data.whole_images import whole_batches
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.data import verify_dataset
from resnet_pipeline.storage.cache import CacheFolder, Wanted
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.workspace import Workspace

AUGMENT = AugmentConfig(kind="pad-crop", crop=24, pad=4)


@pytest.fixture
def space(tmp_path, digits):
    """Return a workspace with a copy of the digits of its own."""
    space = Workspace(tmp_path / "work")
    shutil.copytree(digits.path, space.datasets / "digits")
    return space


def flip_a_bit(dataset, split, sample):
    """Flip a bit amid a sample, which still decodes, and keep the shard's time, as ``rsync -t`` does."""
    samples = dataset.splits[split]
    path = dataset.path / "shards" / samples.shard_of(sample)
    before = path.stat()
    offset, length = samples.extent(sample)
    with path.open("r+b") as file:
        file.seek(offset + 2 * length // 3)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return samples.keys[sample]


def of_digits(space):
    return Dataset.open(space.datasets / "digits")


def test_the_checksum_is_xxh3_of_what_is_read(digits):
    assert digits.checked
    for split in digits.splits.values():
        for sample in range(0, len(split), 97):
            assert xxhash.xxh3_64_intdigest(split.encoded(sample).tobytes()) == split.checksums[sample]


@pytest.mark.parametrize("backend", ["dali", "torch"])
@pytest.mark.parametrize("reader", ["train", "views", "whole"])
def test_a_flipped_bit_is_refused_with_the_sample_s_name_by_every_reader(space, reader, backend):
    dataset = of_digits(space)
    key = flip_a_bit(dataset, "train", 7)
    indices = np.arange(5, 9)
    if reader == "train":
        options = {"augment": AUGMENT, "batch": 128, "micro_batch": 128, "steps": 12, "seed": 0}
        batches = train_batches(dataset, backend=backend, **options)
    elif reader == "views":
        options = {"views": "center", "resize": 32, "crop": 32, "batch_size": 4}
        batches = view_batches(dataset, split="train", indices=indices, backend=backend, **options)
    else:
        options = {"sides": [32], "batch_pixels": 2**20}
        batches = whole_batches(dataset, split="train", indices=indices, backend=backend, **options)
    with batches, pytest.raises(UserError, match=f"sample {key} in shard train-00000.tar is not what was staged"):
        for _ in batches:
            pass


def test_training_refuses_a_flipped_bit_and_names_the_sample(space, make_run):
    dataset, run = of_digits(space), make_run()
    first = int(samples_at(np.arange(1), samples=len(dataset.splits["train"]), seed=run.config().seed)[0])
    key = flip_a_bit(dataset, "train", first)
    with pytest.raises(UserError, match=f"sample {key} .*its checksum differs"):
        train(run, of_digits(space), LocalContext())
    assert run.result() is None


def test_a_dataset_without_checksums_opens_and_says_so_once(space, caplog):
    (space.datasets / "digits").rename(space.datasets / "older")  # of which no other test has been told
    (space.datasets / "older" / CHECKSUMS).unlink()
    caplog.set_level(logging.INFO, "resnet_pipeline")
    for _ in range(2):
        dataset = open_dataset(space, "older")
    assert not dataset.checked and len(dataset.splits["train"].encoded(0)) > 100
    said = [record.getMessage() for record in caplog.records if "checksums" in record.getMessage()]
    assert len(said) == 1 and "data verify older" in said[0]


@pytest.mark.slow
def test_verifying_makes_the_checksums_that_staging_would_have(space):
    file = space.datasets / "digits" / CHECKSUMS
    staged, fingerprint = of_digits(space), of_digits(space).fingerprint
    file.unlink()
    assert verify_dataset(space, "digits").good
    again = of_digits(space)
    assert again.checked and again.fingerprint == fingerprint
    for name, split in staged.splits.items():
        np.testing.assert_array_equal(again.splits[name].checksums, split.checksums)


@pytest.mark.slow
def test_a_bad_dataset_gets_no_checksums_and_verifying_names_the_sample(space):
    dataset = of_digits(space)
    key = flip_a_bit(dataset, "val", 3)
    (bad,) = verify_dataset(space, "digits").bad_samples
    assert (bad.file, bad.reason) == (key, "does not match its checksum")
    (space.datasets / "digits" / CHECKSUMS).unlink()
    assert not verify_dataset(space, "digits").good
    assert not of_digits(space).checked


def test_a_file_of_another_dataset_counts_as_none_a_damaged_one_does_not(tmp_path):
    storage, sums = LocalStorage(tmp_path), {"train": [1, 2**63], "val": [3]}
    samples = {name: len(own) for name, own in sums.items()}
    content = checksums_file(sums, "f" * 64)
    (tmp_path / CHECKSUMS).write_bytes(content)
    assert {k: v.tolist() for k, v in read_checksums(storage, "f" * 64, samples).items()} == sums
    assert read_checksums(storage, "e" * 64, samples) is None
    damaged = bytearray(content)
    damaged[content.index(b"".join(value.to_bytes(8, "little") for value in sums["train"]))] ^= 1
    for bad, wanted in ((bytes(damaged), samples), (content[:-9], samples), (content, {**samples, "val": 2})):
        (tmp_path / CHECKSUMS).write_bytes(bad)
        with pytest.raises(ValueError) as error:
            read_checksums(storage, "f" * 64, wanted)
        assert "\n" not in str(error.value)


def test_a_damaged_file_of_checksums_is_named_with_what_to_do(space):
    (space.datasets / "digits" / CHECKSUMS).write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"{CHECKSUMS} is damaged .*data verify"):
        of_digits(space)


def test_the_remedy_for_a_cached_shard_is_to_remove_the_copy(tmp_path):
    files = CachedShards(LocalStorage(tmp_path), [Wanted("shards/a.tar", 9, "ab" * 32)], CacheFolder(tmp_path / "c"))
    assert f"remove its copy {tmp_path / 'c' / ('ab' * 32)}" in files.remedy(0)


def test_images_in_memory_have_none_to_compare():
    from resnet_pipeline.data.memory_dataset import IMAGES, EncodedDataset

    dataset = EncodedDataset([b"abc"], [(1, 1)], ["a"], ["x"])
    assert torch.from_numpy(dataset.splits[IMAGES].encoded(0).copy()).tolist() == [97, 98, 99]


def test_no_thread_of_arrow_s_touches_a_file_in_memory():
    """One that still does when the program ends aborts it."""

    class Watched(io.BytesIO):
        def read(self, size=-1):
            readers.add(threading.get_ident())
            return super().read(size)

    readers: set[int] = set()
    file = checksums_file({"train": list(range(5000)), "val": [1, 2]}, "f")
    assert table_of(Watched(file), page_checksums=True).num_rows == 5002
    assert readers == {threading.get_ident()}
