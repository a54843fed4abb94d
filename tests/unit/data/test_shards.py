from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from resnet_pipeline.adapters.s3 import storage_at
from resnet_pipeline.data import packing, shards
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.shards import Options, Source, pack, source_fingerprint, stage
from resnet_pipeline.data.storage import LocalStorage
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.stage import stage_dataset
from resnet_pipeline.workspace import Workspace


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


def contents(folder):
    """Every file of a finished dataset but the one that says where it came from."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "source.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_training_samples_are_dealt_out_to_the_shards(photos, tmp_path):
    """A block of shards holds every class: what an order shuffled within blocks relies on."""
    dataset = stage(photos, tmp_path / "x", name="x", workers=1, options=Options(shard_bytes=60_000))
    train = dataset.splits["train"]
    count = len(train.shards)
    assert count > 3
    in_order = sorted(train.keys)
    for number in range(count):
        mine = [key for i, key in enumerate(train.keys) if train.shard_of(i) == train.shards[number]]
        assert mine == in_order[number::count]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_killed_anywhere_it_goes_on_and_gives_the_same_bytes(photos, tmp_path, kind):
    """Killed with SIGKILL after one shard, after three, and let finish: bytes as if nothing had been."""
    archive = tmp_path / f"x.{kind}"
    with tarfile.open(archive, "w:gz" if kind == "tar.gz" else "w") as tar:
        tar.add(photos, arcname="photos", filter=lambda info: info)
    options = Options(shard_bytes=60_000)
    whole = stage(archive, tmp_path / "whole", name="x", workers=3, options=options)
    shards = sum(len(split.shards) for split in whole.splits.values())
    target = tmp_path / "datasets" / "x"
    script = tmp_path / "staging.py"
    script.write_text(
        f"""
import time
from pathlib import Path
from resnet_pipeline.data import packing, workers
from resnet_pipeline.data.shards import Options, stage
def slow(images, size, refused):
    time.sleep(0.02 * images)
    return True
def work(task):
    return packing.pack_shard(task, slow)
workers._work = work
if __name__ == "__main__":
    stage(Path({str(archive)!r}), Path({str(target)!r}), name="x", workers=2, options=Options(shard_bytes=60_000))
"""
    )
    staging = target.parent / ".x.staging"
    before: dict[str, int] = {}
    for wanted in (1, 3):
        process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
        while len(list(staging.glob("staging/records/[!.]*"))) < wanted and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _wait_for_end_of(process.pid)
        assert not target.exists()
        finished = {p.stem: (staging / "shards" / f"{p.stem}.tar").stat().st_mtime_ns
                    for p in staging.glob("staging/records/[!.]*")}  # fmt: skip
        assert wanted <= len(finished) < shards
        assert before.items() <= finished.items(), "what was finished is not made again"
        before = finished
    (staging / "shards" / ".train-00000.tar.half").write_bytes(b"left by a process that was killed")
    resumed = stage(archive, target, name="x", workers=1, options=options)
    assert resumed.fingerprint == whole.fingerprint
    assert contents(resumed.path) == contents(whole.path)
    for name, changed in before.items():
        assert (target / "shards" / f"{name}.tar").stat().st_mtime_ns == changed
    assert [p.name for p in target.parent.iterdir()] == ["x"]


def _wait_for_end_of(session):
    """Wait until no process of a session is left: workers end with their parent."""
    for _ in range(1000):
        if not [p for p in psutil.process_iter() if _session(p.pid) == session and p.status() != psutil.STATUS_ZOMBIE]:
            return
        time.sleep(0.01)
    raise AssertionError("workers go on after their parent was killed")


def _session(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def test_what_another_staging_left_is_not_taken(photos, tmp_path):
    target = tmp_path / "x"
    plan = stage(photos, tmp_path / "other", name="x", workers=1).path
    left = tmp_path / ".x.staging"
    shutil.copytree(plan, left)
    (left / "staging/records").mkdir(parents=True)
    (left / "staging/about.json").write_text('{"source": "another"}')
    (left / "staging/records/train-00000.npz").write_bytes(b"no record")
    assert stage(photos, target, name="x", workers=1).fingerprint == Dataset.open(plan).fingerprint
    assert sorted(p.name for p in target.iterdir()) == sorted(p.name for p in plan.iterdir())


def test_a_full_disk_keeps_what_is_finished(photos, tmp_path):
    """A limit on the size of files stands for the disk's end: the shard with a large image can't be written."""
    noise = np.random.default_rng(1).integers(0, 256, (1200, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "val/dog/large.JPEG", quality=95)
    assert (photos / "val/dog/large.JPEG").stat().st_size > 10**6
    script = tmp_path / "full.py"
    script.write_text(
        f"""
import resource
from pathlib import Path
from resnet_pipeline.data.shards import stage
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, resource.RLIM_INFINITY))
    stage(Path({str(photos)!r}), Path({str(tmp_path / "x")!r}), name="x", workers=1)
"""
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    last = run.stderr.splitlines()[-1]
    assert run.returncode and "val-00000.tar can't be written: File too large" in last and "goes on" in last
    assert not (tmp_path / "x").exists()
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / ".x.staging/shards").iterdir()}
    assert list(kept) == ["train-00000.tar"]
    assert len(stage(photos, tmp_path / "x", name="x", workers=1).splits["val"]) == 11
    assert (tmp_path / "x/shards/train-00000.tar").stat().st_mtime_ns == kept["train-00000.tar"]


@dataclass(frozen=True)
class Cut(LocalStorage):
    """A storage whose connection is cut when a file is read, until another file says that it is mended."""

    at: str
    mended: Path

    def read(self, name, offset=0, length=None):
        if name == self.at and not self.mended.exists():
            raise UserError(f"{self.root / name} can't be read: the connection was cut")
        return super().read(name, offset, length)


def test_a_cut_connection_keeps_what_is_finished(photos, tmp_path):
    source = Source(Cut(photos, "val/dog/04.JPEG", tmp_path / "mended"))
    target = tmp_path / "datasets" / "x"
    options = Options(shard_bytes=60_000)
    with pytest.raises(UserError, match=r"val/dog/04.JPEG can't be read: the connection was cut"):
        pack(source, LocalStorage(target), name="x", workers=1, options=options)
    kept = {p.name: p.stat().st_mtime_ns for p in (target.parent / ".x.staging/shards").iterdir()}
    assert kept and not target.exists()
    (tmp_path / "mended").touch()
    pack(source, LocalStorage(target), name="x", workers=1, options=options)
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in (target / "shards").iterdir()}.items()
    assert contents(target) == contents(stage(photos, tmp_path / "whole", name="x", workers=2, options=options).path)


def test_a_file_that_changes_while_it_is_staged(photos, tmp_path, monkeypatch):
    listed = shards.read_catalogue

    def changed(*arguments, **options):
        catalogue = listed(*arguments, **options)
        (photos / "val/cat/01.JPEG").write_bytes(b"short")
        return catalogue

    monkeypatch.setattr(shards, "read_catalogue", changed)
    with pytest.raises(UserError, match=r"val/cat/01.JPEG changed while it was being staged"):
        stage(photos, tmp_path / "x", name="x", workers=1)


def test_staging_stops_as_soon_as_too_many_are_refused(make_folder, tmp_path):
    """Of 2,000 files the first hundreds are enough to know."""
    rubbish = {f"train/{label}/{i:04d}.JPEG": b"rubbish" for label in "ab" for i in range(1000)}
    folder = make_folder(rubbish)
    seen = []
    with pytest.raises(UserError, match=r"of 2000 files of .* can't be used, more than the allowed 1.0%"):
        stage(folder, tmp_path / "x", name="x", workers=2, progress=seen.append, options=Options(shard_bytes=10**6))
    assert all(at.images < 1000 for at in seen)
    assert list(tmp_path.iterdir()) == [folder]


def test_larger_images_are_made_smaller_where_asked(photos, tmp_path):
    plain = stage(photos, tmp_path / "plain", name="x", workers=1)
    small = stage(photos, tmp_path / "small", name="x", workers=1, options=Options(max_shorter_side=300))
    count = 0
    for name, split in small.splits.items():
        before = plain.splits[name]
        for i in range(len(split)):
            size, original = (split.width[i], split.height[i]), (before.width[i], before.height[i])
            assert Image.open(io.BytesIO(split.encoded(i).tobytes())).size == size
            if min(original) <= 300:
                assert split.encoded(i).tobytes() == before.encoded(i).tobytes()
                continue
            count += 1
            assert min(size) == 300
            assert size[0] / size[1] == pytest.approx(original[0] / original[1], rel=0.01)
            theirs = Image.fromarray(pixels(before, i)).resize(size, Image.Resampling.LANCZOS)
            assert np.abs(pixels(split, i).astype(int) - np.asarray(theirs)).mean() < 1.5
    assert 0 < count < 34
    assert small.manifest["resized"] == {"max_shorter_side": 300, "quality": 95, "images": count}
    assert small.fingerprint != plain.fingerprint


def test_progress_ends_with_all_and_counts_what_was_done_before(photos, tmp_path):
    seen = []
    stage(photos, tmp_path / "x", name="x", workers=2, progress=seen.append)
    total = sum(p.stat().st_size for p in photos.rglob("*.JPEG"))
    assert (seen[-1].images, seen[-1].total, seen[-1].bytes, seen[-1].before) == (34, 34, total, 0)
    assert [at.images for at in seen] == sorted(at.images for at in seen)


def test_a_dataset_in_a_bucket_is_there_with_its_manifest(photos, tmp_path):
    """A storage that is no folder: every file is made elsewhere and handed over whole, the manifest last."""
    written = tmp_path / "written"
    bucket = Bucket(LocalStorage(tmp_path / "bucket"), str(written))
    pack(Source(Bucket(LocalStorage(photos), str(tmp_path / "unused"))), bucket, name="x", workers=2,
         options=Options(shard_bytes=100_000))  # fmt: skip
    whole = stage(photos, tmp_path / "whole", name="x", workers=1, options=Options(shard_bytes=100_000))
    assert contents(tmp_path / "bucket") == contents(whole.path)
    names = written.read_text().split()
    assert names[0] == "staging/about.json" and names[-1] == "manifest.json"
    for name in names:
        if name.startswith("shards/"):
            record = f"staging/records/{name[7:-4]}.npz"
            assert names.index(name) < names.index(record), "a record says that its shard is finished"
    pack(Source.at(photos), bucket, name="x", workers=1, replace=True)
    dataset = Dataset.open(tmp_path / "bucket")
    assert {name: split.shards for name, split in dataset.splits.items()} == {
        "train": ["train-00000.tar"], "val": ["val-00000.tar"]
    }  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "bucket/shards").iterdir()) == ["train-00000.tar", "val-00000.tar"]


@dataclass(frozen=True)
class Bucket:
    """A storage that is not of this machine's folders, as far as anyone can see, and notes what is written."""

    inner: LocalStorage
    log: str
    url: str = "s3://bucket/x"

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.inner, name)

    def write(self, name, content):
        self.inner.write(name, content)
        with Path(self.log).open("a") as file:
            file.write(name + "\n")


@pytest.mark.slow
def test_from_bucket_to_bucket(photos, tmp_path, bucket, monkeypatch):
    """The same dataset as from folder to folder, from an archive and from loose files, by a real server."""
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(tmp_path / "work"))
    archive = tmp_path / "photos.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(photos, arcname="photos")
    source = storage_at(f"s3://{bucket}/raw")
    source.write("photos.tar", archive)
    for path in photos.rglob("*.JPEG"):
        source.write(f"photos/{path.relative_to(photos)}", path)
    options = Options(shard_bytes=100_000)
    whole = stage(photos, tmp_path / "whole", name="x", workers=1, options=options)
    monkeypatch.setenv("RESNET_PIPELINE_DATA", f"s3://{bucket}/datasets")
    for name in ("photos.tar", "photos"):
        arguments = (Workspace.of(), f"s3://{bucket}/raw/{name}", name)
        staged = stage_dataset(*arguments, workers=2, options=options)
        target = storage_at(staged.address)
        names = [stored.name for stored in target.files() if stored.name != "source.json"]
        assert {n: target.read(n) for n in names if n != "manifest.json"} == {
            n: data for n, data in contents(whole.path).items() if n != "manifest.json"
        }
        assert staged.manifest["fingerprint"] == whole.fingerprint
        assert stage_dataset(*arguments, options=options).reused
    with pytest.raises(UserError, match=f"s3://{bucket}/raw/none.tar does not exist"):
        stage_dataset(Workspace.of(), f"s3://{bucket}/raw/none.tar", "none")


@pytest.mark.parametrize("size", [0, 1, 511, 130_000, 8 * 2**30 - 1])
def test_headers_are_those_of_tarfile(size):
    info = tarfile.TarInfo("00000012.jpg")
    info.size, info.mode = size, 0o644
    assert packing._header("00000012.jpg", size) == info.tobuf(tarfile.USTAR_FORMAT)
