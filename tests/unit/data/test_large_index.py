"""The tables of a large dataset are mapped: what each process takes of them, and that they say the same."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resnet_pipeline.data import dataset as dataset_module
from resnet_pipeline.data.checksums import checksums_file
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.manifest import fingerprint_of
from resnet_pipeline.storage.cache import CacheFolder

OPEN = """
import json, sys
from pathlib import Path
import numpy as np, torch
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.manifest import fingerprint_of
from resnet_pipeline.data.order import Blocks, samples_at
from resnet_pipeline.storage.cache import CacheFolder

def private():  # pages of a mapped file count as clean, and are the kernel's to share
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024

before = private()
dataset = Dataset.open(Path(sys.argv[1]), CacheFolder(Path(sys.argv[2])))
train = dataset.splits["train"]
after = private()
positions = np.arange(10**9, 10**9 + 256)
whole = samples_at(positions, samples=len(train), seed=0)
blocks = Blocks(train.shard, 8)
within = samples_at(positions, samples=len(train), seed=0, blocks=blocks)
answers = [train.key_of(int(i)) for i in (whole[0], within[0])]
print(json.dumps([len(train), after - before, private() - before, int(train.labels[whole].sum()), *answers]))
"""


@pytest.fixture
def cache(tmp_path) -> CacheFolder:
    return CacheFolder(tmp_path / "cache")


def test_a_mapped_index_says_what_one_in_memory_does(digits, cache, monkeypatch):
    monkeypatch.setattr(dataset_module, "MAPPED_FROM", 1)
    mapped, again = (Dataset.open(digits.path, cache) for _ in range(2))
    assert {file.suffix for file in (cache.path / "indexes").iterdir()} == {".arrow", ".lock"}
    for name, split in digits.splits.items():
        for other in (mapped.splits[name], again.splits[name]):
            for column in ("labels", "width", "height", "shard", "checksums"):
                left, right = getattr(split, column), getattr(other, column)
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right)
            assert split.keys == other.keys and split.key_of(3) == other.key_of(3) == split.keys[3]
            np.testing.assert_array_equal(split.encoded(5), other.encoded(5))
    assert np.shares_memory(mapped.splits["train"].labels, mapped.splits["train"]._table.column("label").to_numpy())


def test_once_mapped_the_index_is_not_read_again(digits, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(dataset_module, "MAPPED_FROM", 1)
    copy = tmp_path / "copy"
    shutil.copytree(digits.path, copy)
    Dataset.open(copy, cache)
    (copy / "index.parquet").unlink()
    assert len(Dataset.open(copy, cache).splits["train"]) == len(digits.splits["train"])


def test_where_nothing_can_be_kept_each_process_reads_the_index(digits, cache, monkeypatch):
    monkeypatch.setattr(dataset_module, "MAPPED_FROM", 1)
    cache.path.mkdir()
    (cache.path / "indexes").write_text("in the way")
    opened = Dataset.open(digits.path, cache)
    np.testing.assert_array_equal(opened.splits["val"].labels, digits.splits["val"].labels)
    np.testing.assert_array_equal(opened.splits["val"].checksums, digits.splits["val"].checksums)


def test_a_small_dataset_leaves_nothing_in_the_cache(digits, cache):
    Dataset.open(digits.path, cache)
    assert not cache.path.exists()


def large(digits, folder, samples: int, per_shard: int = 10_000) -> None:
    """Write a dataset's small files as staging would for so many training samples; its shards are not there."""
    shutil.copytree(digits.path, folder, ignore=shutil.ignore_patterns("shards"))
    numbers = np.arange(samples)
    table = pa.table(
        {
            "split": pa.array(["train"]).take(pa.array(np.zeros(samples, np.int8))),
            "shard": (numbers // per_shard).astype(np.int32),
            "offset": numbers % per_shard * 110_000,
            "length": np.full(samples, 109_000, np.int64),
            "width": np.full(samples, 500, np.int32),
            "height": np.full(samples, 375, np.int32),
            "label": (numbers % 10).astype(np.int32),
            "key": pa.array([f"train/n{n % 10:08}/n{n % 10:08}_{n}.JPEG" for n in range(samples)]),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    (folder / "index.parquet").write_bytes(buffer.getvalue())
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["index.parquet"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    shards = [
        {"file": f"train-{n:05}.tar", "bytes": 2**30, "samples": per_shard, "sha256": f"{n:064x}"}
        for n in range(samples // per_shard)
    ]
    manifest["splits"] = {"train": {"samples": samples, "shards": shards}}
    manifest["fingerprint"] = fingerprint_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = np.arange(samples, dtype=np.uint64)
    (folder / "checksums.parquet").write_bytes(checksums_file({"train": rows}, manifest["fingerprint"]))


@pytest.mark.soak
def test_fourteen_million_samples_take_each_process_little(digits, cache, tmp_path):
    samples = 14_000_000
    large(digits, tmp_path / "large", samples)
    command = [sys.executable, "-c", OPEN, str(tmp_path / "large"), str(cache.path)]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    together = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [json.loads(text) for text in (first.stdout, *(each.communicate(timeout=600)[0] for each in together))]
    assert all(answer[0] == samples and answer[3:] == answers[0][3:] for answer in answers)
    for _, opened, used, *_ in answers[1:]:
        assert opened < 50 and used < 80, f"MiB of this process's own: {opened:.0f} open, {used:.0f} with two orders"
