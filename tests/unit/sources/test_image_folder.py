from __future__ import annotations

import io
import tarfile
import zipfile

import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.staging import area
from resnet_pipeline.staging.stage import stage
from tests.images import jpeg


def files(prefix=""):
    names = [f"{split}/{label}/{i}.JPEG" for split in ("train", "val") for label in ("a", "b") for i in range(3)]
    return {prefix + name: jpeg(20, 30, seed=i) for i, name in enumerate(names)}


def tar_of(path, contents, mode="w", extra=()):
    with tarfile.open(path, mode) as tar:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for info in extra:
            tar.addfile(info)
    return path


def zip_of(path, contents):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


@pytest.fixture
def target(tmp_path):
    return tmp_path / "datasets" / "x"


def refused(source, target):
    with pytest.raises(UserError) as error:
        stage(source, target, name="x", workers=1)
    assert "\n" not in str(error.value)
    assert not target.parent.exists() or list(target.parent.iterdir()) == []
    return str(error.value)


@pytest.mark.parametrize("prefix", ["", "images/"])
def test_a_folder_and_its_archives_hold_the_same_samples(tmp_path, make_folder, prefix):
    contents = files(prefix)
    sources = [
        make_folder(contents),
        tar_of(tmp_path / "x.tar", contents),
        tar_of(tmp_path / "x.tar.gz", contents, "w:gz"),
        tar_of(tmp_path / "x.tgz", contents, "w:gz"),
        zip_of(tmp_path / "x.zip", contents),
    ]
    found = []
    for number, source in enumerate(sources):
        dataset = stage(source, tmp_path / "datasets" / str(number), name="x", workers=1)
        found.append(
            {name: [split.encoded(i).tobytes() for i in range(len(split))] for name, split in dataset.splits.items()}
        )
        assert dataset.classes == ["a", "b"]
        assert dataset.splits["train"].keys == [f"train/{label}/{i}.JPEG" for label in "ab" for i in range(3)]
        assert dataset.splits["val"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize("name", ["validation", "valid"])
def test_other_names_of_the_validation_split(make_folder, target, name):
    contents = {key.replace("val/", f"{name}/"): data for key, data in files().items()}
    assert stage(make_folder(contents), target, name="x", workers=1).eval_split == "val"


def test_hidden_files_do_not_count(make_folder, target):
    contents = files() | {"train/a/.DS_Store": b"x", "__MACOSX/train/a/._0.JPEG": b"x", ".cache/y": b"x"}
    dataset = stage(make_folder(contents), target, name="x", workers=1)
    assert len(dataset.splits["train"]) == 6 and dataset.manifest.refused == ()


def test_bad_sources_are_named_and_leave_nothing(tmp_path, make_folder, target):
    (tmp_path / "text.tar").write_text("this is no archive")
    whole = tar_of(tmp_path / "whole.tar", files())
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:4000])
    gz = tar_of(tmp_path / "whole.tar.gz", files(), "w:gz")
    (tmp_path / "cut.tar.gz").write_bytes(gz.read_bytes()[:2000])
    zip_of(tmp_path / "whole.zip", files())
    (tmp_path / "cut.zip").write_bytes((tmp_path / "whole.zip").read_bytes()[:3000])
    tar_of(tmp_path / "empty.tar", {})
    (tmp_path / "notes.txt").write_text("x")
    for name in ("missing", "text.tar", "cut.tar", "cut.tar.gz", "cut.zip", "empty.tar", "notes.txt"):
        assert name in refused(tmp_path / name, target), name


def test_a_damaged_archive_found_while_packing_leaves_nothing(tmp_path, target):
    path = zip_of(tmp_path / "x.zip", files())
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xd8") + 100
    data[at : at + 50] = b"\0" * 50
    path.write_bytes(data)
    assert "x.zip" in refused(path, target)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train/c/.keep": b""}, None),
        ({"val/c/0.JPEG": b"x"}, "'c'"),
        ({"train/a/0.JPEG": b"x", "train/a/1.JPEG": b"", "train/a/2.JPEG": b"x"}, "train/a/0.JPEG"),
    ],
)
def test_bad_folders_are_named_and_leave_nothing(make_folder, target, change, named):
    folder = make_folder(files() | change)
    assert (named or "train/c") in refused(folder, target)


def test_a_source_without_training_images(make_folder, target):
    assert "train/<class>" in refused(make_folder({"val/a/0.JPEG": b"x"}), target)


@pytest.mark.parametrize("name", ["../train/a/0.JPEG", "train/../../a/0.JPEG", "/train/a/0.JPEG"])
def test_members_that_point_outside_are_refused(tmp_path, target, name):
    contents = files() | {name: b"x"}
    assert "outside" in refused(tar_of(tmp_path / "x.tar", contents), target)
    assert "outside" in refused(zip_of(tmp_path / "x.zip", contents), target)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, target, kind):
    info = tarfile.TarInfo("train/a/link.JPEG")
    info.type, info.linkname = kind, "/etc/passwd"
    assert "link.JPEG" in refused(tar_of(tmp_path / "x.tar", files(), extra=[info]), target)


def test_duplicate_names_are_refused(tmp_path, target):
    info = tarfile.TarInfo("train/a/0.JPEG")
    assert "train/a/0.JPEG" in refused(tar_of(tmp_path / "x.tar", files(), extra=[info]), target)


def test_too_small_a_disk_is_said_before_anything_is_written(make_folder, target, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(area.shutil, "disk_usage", lambda path: Usage)
    assert "MiB free" in refused(make_folder(files()), target)


def test_a_dataset_is_not_replaced_unasked(make_folder, target):
    folder = make_folder(files())
    first = stage(folder, target, name="x", workers=1)
    with pytest.raises(UserError, match="exists"):
        stage(folder, target, name="x", workers=1)
    assert stage(folder, target, name="x", workers=1, replace=True).fingerprint == first.fingerprint
    assert [p.name for p in target.parent.iterdir()] == ["x"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_of_other_files_never_gives_way_to_a_dataset(make_folder, tmp_path, replace):
    source = make_folder(files())
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"no part of a dataset \(train/a/0.JPEG and 11 more\)"):
        stage(source, source, name="x", workers=1, replace=replace)
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before
    dataset = stage(source, tmp_path / "datasets" / "x", name="x", workers=1).path
    (dataset / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"\(notes.txt\) and would be lost"):
        stage(source, dataset, name="x", workers=1, replace=True)
    assert (dataset / "notes.txt").read_text() == "mine"
