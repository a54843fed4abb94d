from __future__ import annotations

import os
import pickle

import pytest
import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    CheckpointWriter,
    newest_checkpoint,
    read_checkpoint,
)


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        config_hash="abc",
        model={"w": torch.full((3,), float(step))},
        optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        statistics=torch.zeros(2, 4),
        extra={"seconds": 1.5, "schedule": {"drops": 1}},
    )


def test_round_trip_and_the_newest_are_kept(tmp_path):
    writer = CheckpointWriter(tmp_path, keep=2)
    for step in (1, 2, 3):
        writer.write(checkpoint(step))
    writer.close()
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-00000002.pt", "step-00000003.pt"]
    path, problems = newest_checkpoint(tmp_path)
    found = read_checkpoint(path, config_hash="abc")
    assert problems == [] and found.step == 3
    assert torch.equal(found.model["w"], torch.full((3,), 3.0))
    assert found.extra == checkpoint(3).extra and found.optimizer["param_groups"][0]["lr"] == 0.1


def test_what_is_written_is_the_state_when_asked(tmp_path):
    writer = CheckpointWriter(tmp_path)
    state = checkpoint(1)
    writer.write(state)
    state.model["w"].zero_()
    writer.close()
    assert torch.equal(read_checkpoint(newest_checkpoint(tmp_path)[0], config_hash="abc").model["w"], torch.ones(3))


def test_another_run_s_another_version_s_and_hostile_files_are_refused(tmp_path):
    writer = CheckpointWriter(tmp_path)
    writer.write(checkpoint(1))
    writer.close()
    path = newest_checkpoint(tmp_path)[0]
    with pytest.raises(CheckpointError, match="abc"):
        read_checkpoint(path, config_hash="def")
    torch.save({"format": 99}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="99"):
        read_checkpoint(tmp_path / "new.pt", config_hash="abc")

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "hostile.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    torch.save(Hostile(), tmp_path / "hostile2.pt")
    for name in ("hostile.pt", "hostile2.pt", "missing.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name, config_hash="abc")
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_that_cannot_be_written_is_said(tmp_path):
    writer = CheckpointWriter(tmp_path / "gone")
    (tmp_path / "gone").write_text("a file where the folder should be")
    writer.write(checkpoint(1))
    with pytest.raises(UserError, match="gone"):
        writer.wait()
    writer.close()


def test_without_checkpoints_there_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])
