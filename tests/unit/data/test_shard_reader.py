from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import torch

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import train_batches, view_batches
from resnet_pipeline.data.manifest import NoDatasetError
from resnet_pipeline.data.order import Stretch
from resnet_pipeline.data.whole_images import whole_batches
from resnet_pipeline.errors import UserError
from resnet_pipeline.storage.cache import CacheFolder

PAD = AugmentConfig(kind="pad-crop", crop=24, pad=4)

READER = """
import sys
from pathlib import Path
import numpy as np
from resnet_pipeline.storage.s3 import S3Storage
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.cache import CacheFolder
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.order import Blocks, samples_at, stretches

real = S3Storage.pieces
def pieces(self, name, offset=0, length=None):
    with open(sys.argv[3], "a") as log:
        log.write(f"{name} {offset}\\n")
    return real(self, name, offset, length)
S3Storage.pieces = pieces
split = Dataset.open(storage_at(sys.argv[1]), CacheFolder(Path(sys.argv[2]))).splits["train"]
blocks = Blocks(split.shard, 2)
size = 0
with split.files.following(stretches(0, len(split), seed=3, blocks=blocks)) as reached:
    for start in range(int(sys.argv[4]) * 16, len(split), 32):
        reached(start)
        positions = np.arange(start, min(start + 16, len(split)))
        for sample in samples_at(positions, samples=len(split), seed=3, blocks=blocks):
            size += len(split.encoded(int(sample)))
print(size)
"""


def batches(dataset, **options):
    arguments = {"augment": PAD, "seed": 3, "batch": 64, "micro_batch": 32, "steps": 30, "block_shards": 2, **options}
    with train_batches(dataset, **arguments) as found:
        return list(found)


def shards_of(storage, split="train"):
    return json.loads(storage.read("manifest.json"))["splits"][split]["shards"]


def room_for(storage, shards):
    return shards * max(shard["bytes"] for shard in shards_of(storage))


def opened(storage, folder, shards=None):
    return Dataset.open(storage, CacheFolder(folder, None if shards is None else room_for(storage, shards)))


def cached_shards(folder, dataset, split):
    names = {shard.sha256: i for i, shard in enumerate(dataset.manifest.splits[split].shards)}
    return {names[path.name] for path in folder.iterdir() if path.name in names}


@pytest.mark.slow
def test_a_dataset_in_a_bucket_is_the_one_in_the_folder(digits_in_s3, sharded_digits, tmp_path):
    dataset = opened(digits_in_s3, tmp_path)
    assert dataset.fingerprint == sharded_digits.fingerprint and dataset.classes == sharded_digits.classes
    np.testing.assert_array_equal(dataset.statistics.mean_image, sharded_digits.statistics.mean_image)
    for split in ("train", "val"):
        ours, local = dataset.splits[split], sharded_digits.splits[split]
        assert ours.keys == local.keys and ours.labels.tolist() == local.labels.tolist()
        for sample in (0, len(ours) // 2, len(ours) - 1):
            np.testing.assert_array_equal(ours.encoded(sample), local.encoded(sample))
    assert dataset.shard_wait > 0 and sharded_digits.shard_wait == 0


def bytes_in(folder):
    total = 0
    for path in [path for path in folder.iterdir() if path.suffix != ".blocks"]:
        with suppress(FileNotFoundError):  # it was renamed or removed just now
            total += path.stat().st_size
    return total


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dali", "torch"])
def test_batches_of_a_bucket_with_a_small_cache_are_those_of_the_folder(
    digits_in_s3, sharded_digits, tmp_path, backend
):
    dataset = opened(digits_in_s3, tmp_path, shards=4)
    most = 0
    for ours, local in zip(
        train_batches(
            dataset, augment=PAD, seed=3, batch=64, micro_batch=32, steps=30, block_shards=2, backend=backend
        ),
        batches(sharded_digits, backend=backend),
        strict=True,
    ):
        assert torch.equal(ours.index, local.index) and torch.equal(ours.images, local.images)
        most = max(most, bytes_in(tmp_path))
    assert most <= room_for(digits_in_s3, 4)


@pytest.mark.slow
@pytest.mark.parametrize("views", ["center", "whole"])
def test_evaluation_reads_each_shard_once_within_the_limit(digits_in_s3, sharded_digits, tmp_path, views, monkeypatch):
    dataset = opened(digits_in_s3, tmp_path, shards=2)
    brought = []
    real = type(digits_in_s3).pieces
    monkeypatch.setattr(
        type(digits_in_s3), "pieces", lambda self, name, *r: (brought.append(name), real(self, name, *r))[1]
    )
    images = {}
    for source in (dataset, sharded_digits):
        everything = np.arange(len(source.splits["val"]))
        loader = (
            whole_batches(source, split="val", sides=[24, 30], indices=everything, batch_pixels=2**14)
            if views == "whole"
            else view_batches(source, split="val", views=views, resize=24, crop=24, batch_size=50)
        )
        with loader as found:
            images[source.storage.url] = {
                (int(i), x.shape): x for b in found for i, x in zip(b.index, b.images, strict=True)
            }
    ours, local = images.values()
    assert ours.keys() == local.keys() and all(torch.equal(ours[i], local[i]) for i in local)
    assert sorted(brought) == [f"shards/{shard['file']}" for shard in shards_of(digits_in_s3, "val")]


@pytest.mark.slow
def test_the_next_blocks_come_while_one_is_read_and_passed_ones_go(digits_in_s3, tmp_path):
    dataset = opened(digits_in_s3, tmp_path, shards=6)
    files = dataset.splits["train"].files
    order = [Stretch(10 * i, 10 * i + 10, (2 * i, 2 * i + 1)) for i in range(6)]

    def wait_for(shards):
        end = time.monotonic() + 120
        while cached_shards(tmp_path, dataset, "train") != shards:
            assert time.monotonic() < end, cached_shards(tmp_path, dataset, "train")
            time.sleep(0.02)

    with files.following(order) as reached:
        reached(0)
        wait_for({0, 1, 2, 3, 4, 5})  # two blocks ahead, and no more fit
        kept = files.mapped(0)[1000:1100]
        copy = kept.copy()
        reached(9)
        time.sleep(0.3)
        wait_for({0, 1, 2, 3, 4, 5})
        reached(12)
        wait_for({2, 3, 4, 5, 6, 7})
        np.testing.assert_array_equal(kept, copy)  # a view of a removed shard stays valid
        before = files.waited
        files.mapped(5)
        assert files.waited - before < 0.1
        files.mapped(12)  # nobody announced it: it is waited for, and passes the limit
        assert files.waited - before > 0.001
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shards-ahead")]


@pytest.mark.slow
def test_an_order_that_needs_more_than_the_cache_holds_says_what_to_do(digits_in_s3, tmp_path):
    dataset, count = opened(digits_in_s3, tmp_path, shards=4), len(shards_of(digits_in_s3))
    needed = math.ceil(room_for(digits_in_s3, count) / 1e6) / 1e3
    what = f"reads {count} shards at a time, but the cache may hold 4: set RESNET_PIPELINE_CACHE_GB to {needed} or more"
    with pytest.raises(UserError, match=f"{what}, or train with --set order=block --set block_shards=2$"):
        batches(dataset, block_shards=None)
    with pytest.raises(UserError, match=r"reads 6 shards at a time, but the cache may hold 4"):
        batches(dataset, block_shards=3)


@pytest.mark.slow
def test_bringing_ahead_goes_on_after_an_outage(digits_in_s3, tmp_path, monkeypatch):
    dataset = opened(digits_in_s3, tmp_path)
    files = dataset.splits["train"].files
    real, away = type(digits_in_s3).pieces, threading.Event()

    def pieces(self, *arguments):
        if away.is_set():
            raise UserError("no connection")
        return real(self, *arguments)

    monkeypatch.setattr(type(digits_in_s3), "pieces", pieces)
    away.set()
    with files.following([Stretch(10 * i, 10 * i + 10, (i,)) for i in range(6)]) as reached:
        reached(0)
        with pytest.raises(UserError, match="no connection"):
            files.mapped(0)
        time.sleep(0.1)
        away.clear()
        reached(10)
        end = time.monotonic() + 120
        while 3 not in cached_shards(tmp_path, dataset, "train"):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert len(files.mapped(1))


@pytest.mark.slow
def test_a_truncated_shard_in_the_bucket_is_named(digits_in_s3, sharded_digits, tmp_path):
    whole = (sharded_digits.path / "shards" / "train-00003.tar").read_bytes()
    digits_in_s3.write("shards/train-00003.tar", whole[:1000])
    with pytest.raises(UserError, match=r"s3://.*/shards/train-00003.tar is not what was staged.*has 1,000 bytes"):
        batches(opened(digits_in_s3, tmp_path))
    digits_in_s3.write("shards/train-00003.tar", whole)
    assert len(batches(opened(digits_in_s3, tmp_path))) == 60


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "index.parquet", "mean_image.npy"])
def test_missing_and_damaged_files_in_the_bucket_are_named(digits_in_s3, sharded_digits, tmp_path, name):
    digits_in_s3.write(name, (sharded_digits.path / name).read_bytes()[:-10])
    with pytest.raises(UserError, match=name):
        opened(digits_in_s3, tmp_path)
    digits_in_s3.delete(name)
    with pytest.raises(UserError, match="stage it with" if name == "manifest.json" else f"{name} is missing") as error:
        opened(digits_in_s3, tmp_path)
    assert isinstance(error.value, NoDatasetError) == (name == "manifest.json")


def test_a_shard_that_changed_in_the_folder_is_named(photos, tmp_path):
    from resnet_pipeline.staging.stage import stage

    dataset = stage(photos, tmp_path / "x", name="x", workers=1)
    shard = tmp_path / "x" / "shards" / "train-00000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content)  # newer than the manifest, but what it was
    assert len(Dataset.open(dataset.path).splits["train"].encoded(0))
    shard.write_bytes(content[:2000] + b"\1" + content[2001:])
    os.utime(shard, (time.time() + 10,) * 2)
    with pytest.raises(UserError, match=r"train-00000.tar does not match its checksum .* stage the dataset again"):
        Dataset.open(dataset.path).splits["train"].encoded(0)
    shard.write_bytes(content[:-512])
    with pytest.raises(UserError, match=r"train-00000.tar has [\d,]+ bytes instead of"):
        Dataset.open(dataset.path).splits["train"].encoded(0)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00000.tar can't be read \(No such file"):
        Dataset.open(dataset.path).splits["train"].encoded(0)


@pytest.mark.slow
def test_two_processes_share_a_cache_and_bring_each_shard_once(digits_in_s3, sharded_digits, tmp_path):
    log = tmp_path / "reads"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", READER, digits_in_s3.url, str(tmp_path / "cache"), str(log), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    sizes = [int(process.communicate()[0]) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    train = sharded_digits.splits["train"]
    assert sum(sizes) == sum(len(train.encoded(i)) for i in range(len(train)))
    reads = [line for line in log.read_text().splitlines() if "shards/" in line]
    assert sorted(reads) == sorted(f"shards/{shard['file']} 0" for shard in shards_of(digits_in_s3))
