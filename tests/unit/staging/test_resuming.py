"""Staging that is broken off and goes on, and datasets that lie elsewhere than in a folder."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.image_audit import PixelSums
from resnet_pipeline.data.manifest import read_origin
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.stage import stage_dataset
from resnet_pipeline.staging import stage as staging
from resnet_pipeline.staging.shard_writer import Record, temporary_prefix
from resnet_pipeline.staging.stage import Options, Source, pack, stage
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.workspace import Workspace
from tests.images import jpeg


def contents(folder):
    """Every file of a finished dataset but the one that says where it came from."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "source.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


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
from resnet_pipeline.staging import shard_pool, shard_writer
from resnet_pipeline.staging.stage import Options, stage
def slow(images, size, refused):
    time.sleep(0.02 * images)
    return True
def work(task):
    return shard_writer.pack_shard(task, slow)
shard_pool._work = work
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


@pytest.mark.slow
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
from resnet_pipeline.staging.stage import stage
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


@pytest.mark.slow
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
    listed = staging.read_catalogue

    def changed(*arguments, **options):
        catalogue = listed(*arguments, **options)
        (photos / "val/cat/01.JPEG").write_bytes(b"short")
        return catalogue

    monkeypatch.setattr(staging, "read_catalogue", changed)
    with pytest.raises(UserError, match=r"val/cat/01.JPEG changed while it was being staged"):
        stage(photos, tmp_path / "x", name="x", workers=1)


@pytest.mark.slow
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
def test_two_stagings_into_one_bucket_are_one_after_the_other(photos, photo_set, make_folder, bucket, monkeypatch):
    """The second is told that the first is at work, and neither sees the other's files."""
    monkeypatch.setenv("RESNET_PIPELINE_DATA", f"s3://{bucket}/datasets")
    others = make_folder({f"{split}/{label}/1.jpg": jpeg(30, 40) for split in ("train", "val") for label in "ab"}, "o")
    packed, told = staging.write_manifest, []

    def meanwhile(*arguments, **options):
        for replace in (False, True):
            with pytest.raises(UserError) as error:
                stage_dataset(Workspace.of(), str(others), "x", workers=1, replace=replace)
            told.append(str(error.value))
        return packed(*arguments, **options)

    monkeypatch.setattr(staging, "write_manifest", meanwhile)
    first = stage_dataset(Workspace.of(), str(photos), "x", workers=1)
    monkeypatch.undo()
    monkeypatch.setenv("RESNET_PIPELINE_DATA", f"s3://{bucket}/datasets")
    assert all(f"another process is staging 's3://{bucket}/datasets/x' now; wait for it" in text for text in told)
    assert len(told) == 2 and f"process {os.getpid()} of" in told[0]
    assert first.manifest.fingerprint == photo_set.fingerprint
    assert storage_at(first.address).stat("staging.lease") is None
    with pytest.raises(UserError, match="dataset 'x' exists"):
        stage_dataset(Workspace.of(), str(others), "x", workers=1)


@pytest.mark.slow
def test_what_is_laid_out_for_two_buckets_lies_in_two_folders(photos, tmp_path, monkeypatch):
    """A compressed archive is laid out on this machine, and a kill's leavings go at the next start."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    archive = tmp_path / "photos.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(photos, arcname="photos")
    buckets = {name: Bucket(LocalStorage(tmp_path / name), str(tmp_path / "log"), f"s3://{name}/x") for name in "ab"}
    left = [tmp_path / f"{temporary_prefix(bucket)}killed" for bucket in buckets.values()]
    for folder in left:
        (folder / "spool").mkdir(parents=True)
    laid_out = staging.spooled

    def both(catalogue, shards, folder, largest):
        if len(folders) < 2:
            folders.append(folder)
            if len(folders) == 1:
                pack(Source.at(archive), buckets["b"], name="x", workers=1)
                assert left[0].exists() is left[1].exists() is False
        return laid_out(catalogue, shards, folder, largest)

    folders = []
    monkeypatch.setattr(staging, "spooled", both)
    pack(Source.at(archive), buckets["a"], name="x", workers=1)
    assert len(set(folders)) == 2 and contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "log", "photos.tar.gz", "source"]


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
        assert staged.manifest.fingerprint == whole.fingerprint
        assert stage_dataset(*arguments, options=options).reused
    with pytest.raises(UserError, match=f"s3://{bucket}/raw/none.tar does not exist"):
        stage_dataset(Workspace.of(), f"s3://{bucket}/raw/none.tar", "none")


def test_killed_between_two_renames_the_old_dataset_is_back(photos, tmp_path):
    """A dataset is replaced by renaming the old one away and the new one into its place."""
    first = stage(photos, tmp_path / "x", name="x", workers=1)
    (tmp_path / "x").rename(tmp_path / ".x.old")
    (photos / "train/cat/broken.JPEG").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="max-refused"):
        stage(photos, tmp_path / "x", name="x", workers=1)
    assert Dataset.open(tmp_path / "x").fingerprint == first.fingerprint


DAMAGED = {
    "cut": lambda data: data[:200],
    "empty": lambda data: b"",
    "not an object": lambda data: b"[1, 2]",
    "lacking keys": lambda data: b'{"format": 2}',
    "no JSON": lambda data: b"\xff\0rubbish",
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("manifest.json", kind) for kind in DAMAGED), ("index.parquet", "cut"), ("shards/val-00000.tar", "cut")],
)
def test_a_dataset_whose_files_are_damaged_is_staged_again(photos, tmp_path, name, kind, caplog):
    whole = stage_dataset(Workspace(tmp_path), str(photos), "x", workers=1)
    path = tmp_path / "datasets/x" / name
    before = path.read_bytes()
    path.write_bytes(DAMAGED[kind](before))
    again = stage_dataset(Workspace(tmp_path), str(photos), "x", workers=1)
    assert not again.reused and again.manifest == whole.manifest and path.read_bytes() == before
    (line,) = caplog.messages
    assert name in line and "staging it again" in line and "\n" not in line
    assert stage_dataset(Workspace(tmp_path), str(photos), "x").reused


def test_a_damaged_note_of_the_source_is_one_line(photos, tmp_path):
    whole = stage_dataset(Workspace(tmp_path), str(photos), "x", workers=1)
    note = tmp_path / "datasets/x/source.json"
    for damage in DAMAGED.values():
        note.write_bytes(damage(b""))
        assert read_origin(LocalStorage(note.parent)) is None
        with pytest.raises(UserError, match=r"^dataset 'x' exists and was staged from other .*--replace it$"):
            stage_dataset(Workspace(tmp_path), str(photos), "x", workers=1)
    again = stage_dataset(Workspace(tmp_path), str(photos), "x", workers=1, replace=True)
    assert again.manifest == whole.manifest


def broken_off(photos, folder, options):
    """Leave in ``folder`` what a staging leaves that was broken off in its last shard; return its hidden folder."""
    (folder / "mended").unlink(missing_ok=True)
    with pytest.raises(UserError, match="the connection was cut"):
        pack(cut(photos, folder), LocalStorage(folder / "x"), name="x", workers=1, options=options)
    (folder / "mended").touch()
    return folder / ".x.staging"


def cut(photos, folder):
    return Source(Cut(photos, "val/dog/04.JPEG", folder / "mended"))


def turned(data):
    """Return the bytes with one in the middle changed."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]


LEFT = {**DAMAGED, "one byte": turned, "half": lambda data: data[: len(data) // 2]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("records/train-00000.npz", kind) for kind in ("cut", "no JSON", "one byte")),
        *(("listing.parquet", kind) for kind in ("empty", "one byte")),
        ("about.json", "half"),
    ],
)
def test_what_is_damaged_of_a_broken_off_staging_is_made_again(photos, tmp_path, name, kind):
    options = Options(shard_bytes=60_000)
    left = broken_off(photos, tmp_path, options)
    damaged = left / "staging" / name
    damaged.write_bytes(LEFT[kind](damaged.read_bytes()))
    kept = (left / "shards/train-00001.tar").stat().st_mtime_ns
    pack(cut(photos, tmp_path), LocalStorage(tmp_path / "x"), name="x", workers=1, options=options)
    assert contents(tmp_path / "x") == contents(
        stage(photos, tmp_path / "y", name="x", workers=1, options=options).path
    )
    if name != "about.json":  # which says of what the rest is
        assert (tmp_path / "x/shards/train-00001.tar").stat().st_mtime_ns == kept


def test_a_record_whose_parts_are_no_record_is_none():
    for about in (b"rubbish", b"[]", b'{"sha256": ""}', b'{"sha256": "", "bytes": 1, "refused": ["x"]}'):
        file = io.BytesIO()
        np.savez(file, about=np.array(about.decode()), rows=np.zeros((0, 5)), **PixelSums((1, 1)).to_arrays())
        with pytest.raises(ValueError, match="no record of a shard"):
            Record.from_bytes(file.getvalue())


@pytest.mark.parametrize("lost", [True, False])
def test_a_shard_that_is_not_as_its_record_says_is_packed_again(photos, tmp_path, lost):
    options = Options(shard_bytes=60_000)
    shard = broken_off(photos, tmp_path, options) / "shards/train-00000.tar"
    whole = shard.read_bytes()
    shard.unlink() if lost else shard.write_bytes(whole[:-512])
    pack(cut(photos, tmp_path), LocalStorage(tmp_path / "x"), name="x", workers=1, options=options)
    assert (tmp_path / "x/shards/train-00000.tar").read_bytes() == whole


def test_temporary_files_of_a_killed_process_are_in_no_dataset(photos, tmp_path):
    options = Options(shard_bytes=60_000)
    left = broken_off(photos, tmp_path, options)
    half = ("staging/records/.train-00000.npz.a", "staging/.listing.parquet.a", "shards/.train-00000.tar.a",
            ".index.parquet.a", ".manifest.json.a", ".mean_image.npy.a", ".source.json.a")  # fmt: skip
    for name in half:
        (left / name).write_bytes(b"half")
    pack(cut(photos, tmp_path), LocalStorage(tmp_path / "x"), name="x", workers=1, options=options)
    assert not [path for path in (tmp_path / "x").rglob("*") if path.name.startswith(".") or path.name == "staging"]
