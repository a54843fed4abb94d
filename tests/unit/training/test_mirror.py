from __future__ import annotations

import logging
import shutil
import time
from dataclasses import dataclass

import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.checkpoint import newest_checkpoint
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import NoteEntry, TrainEntry
from resnet_pipeline.training.mirror import Mirror, fetch_newer, mirror_of, send
from tests.metrics import entries


def stopping_after(steps: int) -> LocalContext:
    left = iter(range(steps - 1))
    return LocalContext(stop=lambda: next(left, None) is None)


@pytest.mark.slow
def test_a_run_resumes_from_the_mirror_on_an_empty_machine(make_run, digits, tmp_path):
    whole = make_run(folder="whole")
    train(whole, digits, LocalContext())
    mirror = LocalStorage(tmp_path / "mirror")
    first = make_run(folder="first")
    assert not train(first, digits, stopping_after(7), mirror=mirror)
    shutil.rmtree(first.path)
    second = make_run(folder="second")
    assert train(second, digits, LocalContext(), mirror=mirror)
    assert second.result().weights_sha256 == whole.result().weights_sha256
    histories = [[(step, e.lr, e.figures) for step, e in entries(run, TrainEntry)] for run in (whole, second)]
    assert histories[0] == histories[1] and len(histories[0]) == 6
    # what is not kept here is not kept there
    here = {p.name for p in second.checkpoints.iterdir()}
    assert {p.name for p in (tmp_path / "mirror" / "checkpoints").iterdir()} == here


@pytest.mark.slow
def test_a_damaged_checkpoint_in_the_mirror_falls_back_to_the_one_before(make_run, digits, tmp_path, caplog):
    caplog.set_level(logging.INFO, "resnet_pipeline.training")
    run, storage = make_run(folder="run"), LocalStorage(tmp_path / "mirror")
    train(run, digits, stopping_after(9))
    send(run, storage)
    newest, _ = newest_checkpoint(run.checkpoints)
    (tmp_path / "mirror" / "checkpoints" / newest.name).write_bytes(b"not it")
    empty = make_run(folder="empty")
    fetch_newer(empty, storage)
    said = caplog.messages[:]
    assert newest.stem in said[0] and "does not match" in said[0] and "fetched the checkpoint of step 8" in said[1]
    assert newest_checkpoint(empty.checkpoints)[0].name == "step-00000008.pt"
    fetch_newer(empty, storage)
    assert caplog.messages[2:] == said[:1]  # nothing newer that is good


@dataclass(frozen=True)
class Away(LocalStorage):
    """A storage that does not answer while the file ``away`` exists."""

    def files(self, prefix=""):
        if (self.root / "away").exists():
            raise UserError(f"{self.url} does not answer")
        return super().files(prefix)


@pytest.mark.slow
def test_a_mirror_that_is_away_is_said_once_and_gets_all_when_it_is_back(make_run, digits, tmp_path, caplog):
    storage = Away(tmp_path / "mirror")
    storage.root.mkdir()
    (storage.root / "away").touch()
    run = make_run(folder="run")
    train(run, digits, stopping_after(5))
    mirror = Mirror(run, storage)
    for _ in range(2):
        mirror.send_soon()
        deadline = time.monotonic() + 120
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
    (storage.root / "away").unlink()
    mirror.send_soon()
    mirror.close()
    said = caplog.messages
    assert len(said) == 2 and "does not answer" in said[0] and "answers again" in said[1]
    assert len(storage.files("checkpoints/")) == len(list(run.checkpoints.iterdir()))


@pytest.mark.slow
def test_a_mirror_that_cannot_be_read_at_the_start_does_not_stop_a_run(make_run, digits, tmp_path):
    storage = Away(tmp_path / "mirror")
    storage.root.mkdir()
    (storage.root / "away").touch()
    run = make_run("steps=2", folder="run")
    assert train(run, digits, LocalContext(), mirror=storage)
    notes = [note.text for _, note in entries(run, NoteEntry)]
    assert any("nothing fetched" in note for note in notes)


@pytest.mark.slow
def test_checkpoints_in_a_bucket(make_run, digits, bucket, caplog):
    caplog.set_level(logging.INFO, "resnet_pipeline.training")
    first = make_run(folder="first")
    storage = mirror_of(first, f"s3://{bucket}/runs/")
    assert not train(first, digits, stopping_after(7), mirror=storage)
    second = make_run(folder="second")
    fetch_newer(second, storage)
    assert caplog.messages[-1].startswith("fetched the checkpoint of step 7 from s3://")
    path, problems = newest_checkpoint(second.checkpoints)
    assert path.read_bytes() == newest_checkpoint(first.checkpoints)[0].read_bytes() and problems == []
