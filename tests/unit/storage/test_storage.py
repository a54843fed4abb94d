from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.stage import stage_dataset
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.workspace import Workspace


def test_a_folder_keeps_lists_and_reads_files(tmp_path):
    storage = pickle.loads(pickle.dumps(LocalStorage(tmp_path)))
    (tmp_path / "file").write_bytes(b"from a file")
    storage.write("b/two", b"0123456789")
    storage.write("b/one", tmp_path / "file")
    assert [(s.name, s.size) for s in storage.files()] == [("b/one", 11), ("b/two", 10), ("file", 11)]
    assert [s.name for s in storage.files("b/t")] == ["b/two"]
    assert storage.read("b/two") == b"0123456789"
    assert storage.read("b/two", 2, 3) == b"234" and storage.read("b/two", 8, 10) == b"89"
    with storage.open("b/one") as file:
        file.seek(5)
        assert file.read() == b"a file"


def test_a_version_changes_with_the_file(tmp_path):
    storage = LocalStorage(tmp_path)
    assert storage.stat("x") is None
    storage.write("x", b"1")
    first = storage.stat("x")
    storage.write("x", b"22")
    assert storage.stat("x") != first and storage.stat("x").size == 2
    storage.delete("x")
    storage.delete("x")
    assert storage.stat("x") is None and storage.files() == []


def test_errors_name_the_file(tmp_path):
    storage = LocalStorage(tmp_path)
    for call in (lambda: storage.read("none"), lambda: storage.open("none")):
        with pytest.raises(UserError, match="none can't be read: No such file"):
            call()
    (tmp_path / "folder").write_bytes(b"")
    with pytest.raises(UserError, match=r"folder/x can't be written"):
        storage.write("folder/x", b"")


@pytest.mark.parametrize("address", ["https://me:SECRET@host/x", "S3://bucket/x", "gs:/bucket/x", "file:///tmp"])
def test_an_address_of_something_else_becomes_no_folder(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for take in (storage_at, Workspace.of, lambda it: stage_dataset(Workspace.of(tmp_path), str(it), "x")):
        for given in (address, Path(address)):
            with pytest.raises(UserError, match=r"an address that begins with \w+:// is no place") as error:
                take(given)
            assert "SECRET" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "odd:").mkdir()
    assert storage_at("odd:/x").url == str(tmp_path / "odd:" / "x")
    with pytest.raises(UserError, match="a path is empty"):
        storage_at("")
