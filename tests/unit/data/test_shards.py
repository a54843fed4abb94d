from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.shards import Options, Source, source_fingerprint, stage
from resnet_pipeline.errors import UserError


def pixels(split, index):
    return np.array(Image.open(io.BytesIO(split.encoded(index).tobytes())).convert("RGB"))


def test_the_result_is_the_same_for_any_number_of_workers(photos, tmp_path):
    one = stage(photos, tmp_path / "one", name="photos", workers=1, options=Options(shard_bytes=100_000))
    three = stage(photos, tmp_path / "three", name="other", workers=3, options=Options(shard_bytes=100_000))
    assert one.fingerprint == three.fingerprint
    names = sorted(p.name for p in (one.path / "shards").iterdir())
    assert len(names) > 3  # several shards a split
    for name in names:
        assert (one.path / "shards" / name).read_bytes() == (three.path / "shards" / name).read_bytes()


def test_shards_are_tar_files_of_the_original_bytes(photos, tmp_path):
    dataset = stage(photos, tmp_path / "x", name="x", workers=1, options=Options(shard_bytes=100_000))
    seen = set()
    for name, split in dataset.manifest["splits"].items():
        for shard in split["shards"]:
            path = dataset.path / "shards" / shard["file"]
            assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
            assert path.stat().st_size == shard["bytes"] + 1024 or path.stat().st_size == shard["bytes"]
            with tarfile.open(path) as tar:
                members = {m.name: tar.extractfile(m).read() for m in tar}
            stems = sorted({n.split(".")[0] for n in members})
            assert len(stems) == shard["samples"]
            for stem in stems:
                about = json.loads(members[f"{stem}.json"])
                assert members[f"{stem}.jpg"] == (photos / about["key"]).read_bytes()
                assert dataset.classes[about["label"]] == about["class"]
                seen.add((name, about["key"]))
    assert len(seen) == 34


def test_the_index_points_at_the_images(photos, tmp_path):
    dataset = stage(photos, tmp_path / "x", name="x", workers=2)
    for split in dataset.splits.values():
        for i, key in enumerate(split.keys):
            assert split.encoded(i).tobytes() == (photos / key).read_bytes()
            with Image.open(photos / key) as image:
                assert (split.width[i], split.height[i]) == image.size
            assert dataset.classes[split.labels[i]] == key.split("/")[1]


def test_statistics_are_those_of_the_pixels(digits):
    train = digits.splits["train"]
    images = np.stack([pixels(train, i) for i in range(len(train))]).astype(np.float64)
    flat = images.reshape(-1, 3)
    np.testing.assert_allclose(digits.statistics.mean_rgb, flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(digits.statistics.mean_image, images.mean(0), atol=1e-3)
    basis = digits.statistics.color_basis
    # columns: unit eigenvectors of the covariance in 0..1 units, times eigenvalue, times 255
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True) / 255**2)
    np.testing.assert_allclose(np.abs(basis), np.abs(vectors * values * 255), atol=1e-4)


def test_large_images_have_the_mean_of_their_centre_crops(photos, tmp_path):
    dataset = stage(photos, tmp_path / "x", name="x", workers=1)
    assert dataset.statistics.mean_image.shape == (224, 224, 3)
    from torchvision.transforms import v2

    transform = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
    train = dataset.splits["train"]
    crops = [np.asarray(transform(Image.fromarray(pixels(train, i)))).astype(float) for i in range(len(train))]
    assert np.abs(np.mean(crops, axis=0) - dataset.statistics.mean_image).mean() < 1


def test_refusals_are_listed_and_too_many_stop(make_folder, photos, tmp_path):
    (photos / "train/cat/broken.JPEG").write_bytes(b"x")
    with pytest.raises(UserError, match=r"broken.JPEG"):
        stage(photos, tmp_path / "x", name="x", workers=1)
    assert not (tmp_path / "x").exists()
    dataset = stage(photos, tmp_path / "x", name="x", workers=1, max_refused=0.05)
    assert [r["file"] for r in dataset.manifest["refused"]] == ["train/cat/broken.JPEG"]
    assert len(dataset.splits["train"]) == 24


def test_changes_after_staging_are_noticed(photos, tmp_path):
    dataset = stage(photos, tmp_path / "x", name="x", workers=1)
    manifest = json.loads((dataset.path / "manifest.json").read_text())
    manifest["classes"][0] = "cow"
    (dataset.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest.json"):
        Dataset.open(dataset.path)
    dataset = stage(photos, tmp_path / "x", name="x", workers=1, replace=True)
    index = dataset.path / "index.parquet"
    index.write_bytes(index.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"index.parquet"):
        Dataset.open(dataset.path)


def test_a_missing_dataset_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match="resnet-pipeline stage"):
        Dataset.open(tmp_path / "nothing")


def test_a_source_that_changed_looks_different(photos):
    before = source_fingerprint(Source.at(photos))
    assert source_fingerprint(Source.at(photos)) == before
    (photos / "train/cat/new.JPEG").write_bytes(b"x")
    assert source_fingerprint(Source.at(photos)) != before


def test_a_killed_staging_leaves_no_dataset_and_can_be_started_again(photos, tmp_path):
    target = tmp_path / "datasets" / "x"
    code = f"""
import sys, time
from pathlib import Path
from resnet_pipeline.data.shards import stage
def slow(done, total, refused):
    print(done, flush=True)
    time.sleep(0.2)
if __name__ == "__main__":
    stage(Path({str(photos)!r}), Path({str(target)!r}), name="x", workers=1, progress=slow)
"""
    script = tmp_path / "slow.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not target.exists()
    time.sleep(0.1)
    assert len(stage(photos, target, name="x", workers=1).splits["train"]) == 24
    assert [p.name for p in target.parent.iterdir()] == ["x"]
