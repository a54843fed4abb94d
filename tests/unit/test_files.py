"""Files that can't be written: one line that names the file, and nothing half-written."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.scores import Scores, write_scores
from resnet_pipeline.files import WriteError, check_writable, read_json, replacing, write_json
from resnet_pipeline.models.weights import write_safetensors
from resnet_pipeline.report.evaluation_figures import save_figure


def write_many_scores(path):
    scores = Scores(
        model="m", weights_sha256="", dataset_fingerprint="d", split="val", protocol="center", seconds=1.0,
        keys=[str(i) for i in range(500)], labels=np.zeros(500, np.int64), probabilities=np.zeros((500, 9), np.float32),
    )  # fmt: skip
    write_scores(scores, path)


def save_with_pytorch(path):
    """Write as exports and checkpoints do: PyTorch's writer makes a RuntimeError of the file's own error."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save({"w": torch.zeros(100_000)}, file)


def a_figure():
    figure = Figure()
    figure.subplots()
    return figure


def write_by_hand(path):
    with replacing(path) as temporary:
        temporary.write_text("x" * 100_000)


WRITERS = {
    "s.parquet": write_many_scores,
    "w.safetensors": lambda path: write_safetensors({"w": torch.zeros(100_000)}, path, {}),
    "w.pt2": save_with_pytorch,
    "v.json": lambda path: write_json(path, ["x" * 100] * 1000),
    "f.svg": lambda path: save_figure(a_figure(), path),
    "page.html": write_by_hand,
}


@contextmanager
def full_disk():
    """Inside, no file grows beyond 2 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"before")
    with full_disk(), pytest.raises(UserError) as error:
        WRITERS[name](path)
    assert str(path) in str(error.value) and "can't be written: File too large" in str(error.value)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(name, b"before")]


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_can_t_be_written_to_is_one_line(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        WRITERS[name](tmp_path / "file" / name)
    assert str(tmp_path / "file" / name) in str(error.value) and "Not a directory" in str(error.value)


def test_the_error_is_one_of_the_system_s_too(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="can't be written") as error, replacing(tmp_path / "file" / "x"):
        pass
    assert (error.value.errno, error.value.strerror) == (errno.ENOTDIR, "Not a directory")
    again = pickle.loads(pickle.dumps(error.value))  # as it comes back from a worker
    assert isinstance(again, WriteError) and str(again) == str(error.value)


def test_whether_a_file_can_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_text("before")
    for good in (tmp_path / "file", tmp_path / "new" / "x", Path("/dev/null")):
        check_writable(good)
    assert (tmp_path / "file").read_text() == "before" and not list(tmp_path.rglob(".*"))
    for bad in (tmp_path, tmp_path / "file" / "x"):
        with pytest.raises(WriteError, match="can't be written"):
            check_writable(bad)


def test_another_error_passes_as_it_is(tmp_path):
    with pytest.raises(KeyError), replacing(tmp_path / "x"):
        raise KeyError("x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_names_is_replaced(tmp_path, there):
    link, target = tmp_path / "link.json", tmp_path / "far" / "target.json"
    target.parent.mkdir()
    if there:
        target.write_text("before")
    link.symlink_to("far/target.json")
    write_json(link, 1)
    assert link.is_symlink() and target.read_text() == "1\n"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["far", "link.json", "target.json"]


def test_what_is_no_file_is_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write_json(pipe, {"a": 1})
    reader.join(10)
    assert read == ['{\n  "a": 1\n}\n'] and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
    with pytest.raises(WriteError, match="/dev/full can't be written: No space left on device"):
        write_json(Path("/dev/full"), {"a": 1})
    with pytest.raises(WriteError, match="can't be written: Is a directory"):
        write_json(tmp_path, {"a": 1})


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff", b"{"])
def test_what_is_no_json_object_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json can't be read: "):
        read_json(tmp_path / "x.json")
