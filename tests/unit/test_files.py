"""Files that can't be written: one line that names the file, and nothing half-written."""

from __future__ import annotations

import errno
import pickle
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.scores import Scores, write_scores
from resnet_pipeline.files import WriteError, read_json, replacing, write_json
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


def test_another_error_passes_as_it_is(tmp_path):
    with pytest.raises(KeyError), replacing(tmp_path / "x"):
        raise KeyError("x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff", b"{"])
def test_what_is_no_json_object_is_named(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json can't be read: "):
        read_json(tmp_path / "x.json")
