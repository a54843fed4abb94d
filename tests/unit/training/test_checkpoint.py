from __future__ import annotations

import os
import pickle
import resource
import threading
from dataclasses import replace

import pytest
import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.training.checkpoint import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    Progress,
    checkpoint_steps,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from resnet_pipeline.training.checkpoint_writer import CheckpointWriter
from resnet_pipeline.training.schedule import ScheduleState
from tests.checkpoints import altered


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        run="abc",
        model={"w": torch.full((3,), float(step))},
        optimizer={"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        statistics=torch.zeros(2, 4),
        sums=torch.zeros(2, 3, dtype=torch.float64),
        extra=Progress(seconds=1.5, schedule=ScheduleState(drops=1), last_train={}, best={}),
    )


def test_round_trip_and_the_newest_are_kept(tmp_path):
    writer = CheckpointWriter(tmp_path, keep=2)
    for step in (1, 2, 3):
        writer.write(checkpoint(step))
        writer.wait()
    writer.close()
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-00000002.pt", "step-00000003.pt"]
    path, problems = newest_checkpoint(tmp_path)
    found = read_checkpoint(path, run="abc")
    assert problems == [] and found.step == 3
    assert torch.equal(found.model["w"], torch.full((3,), 3.0))
    assert found.extra == checkpoint(3).extra and found.optimizer["param_groups"][0]["lr"] == 0.1


def test_what_is_written_is_the_state_when_asked(tmp_path):
    writer = CheckpointWriter(tmp_path)
    state = checkpoint(1)
    writer.write(state)
    state.model["w"].zero_()
    writer.close()
    assert torch.equal(read_checkpoint(newest_checkpoint(tmp_path)[0], run="abc").model["w"], torch.ones(3))


def test_another_run_s_another_version_s_and_hostile_files_are_refused(tmp_path):
    writer = CheckpointWriter(tmp_path)
    writer.write(checkpoint(1))
    writer.close()
    path = newest_checkpoint(tmp_path)[0]
    with pytest.raises(CheckpointError, match="abc"):
        read_checkpoint(path, run="def")
    torch.save({"format": 99}, tmp_path / "new.pt")
    with pytest.raises(CheckpointError, match="99"):
        read_checkpoint(tmp_path / "new.pt", run="abc")

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "hostile.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    torch.save(Hostile(), tmp_path / "hostile2.pt")
    for name in ("hostile.pt", "hostile2.pt", "missing.pt"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(tmp_path / name, run="abc")
    assert not (tmp_path / "owned").exists()


def test_a_checkpoint_of_another_network_or_format_is_refused(tmp_path):
    path = altered(write_checkpoint(tmp_path, checkpoint(1)), run="imagenet-resnet50-0a-s0-1b")
    with pytest.raises(CheckpointError, match=r"imagenet-resnet50-0a-s0-1b.*not to cifar10-resnet20"):
        read_checkpoint(path, run="cifar10-resnet20")
    altered(path, format=FORMAT + 1)
    with pytest.raises(CheckpointError, match=rf"format {FORMAT + 1}.*newer version wrote it"):
        read_checkpoint(path, run="abc")
    altered(path, format=FORMAT - 1)
    with pytest.raises(CheckpointError, match=f"format {FORMAT - 1}, and this version reads {FORMAT}$"):
        read_checkpoint(path, run="abc")
    path = altered(write_checkpoint(tmp_path, checkpoint(1)), without=["optimizer"])
    with pytest.raises(CheckpointError, match="optimizer"):
        read_checkpoint(path, run="abc")


def test_a_checkpoint_that_cannot_be_written_ends_training_the_third_time(tmp_path, caplog):
    writer = CheckpointWriter(tmp_path / "gone")
    (tmp_path / "gone").write_text("a file where the folder should be")
    for step in (1, 2, 3):
        writer.write(checkpoint(step))
        with pytest.raises(UserError, match="gone"):
            writer.wait()
    said = caplog.messages
    assert len(said) == 3 and "step 2 not written" in said[1] and "earlier ones are intact" in said[1]
    with pytest.raises(UserError, match="make room"):
        writer.write(checkpoint(4))
    writer.close()


def test_a_full_disk_leaves_the_last_checkpoint_until_there_is_room(tmp_path, caplog):
    writer = CheckpointWriter(tmp_path)
    writer.write(checkpoint(1))
    writer.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # files end at 1000 bytes: errno EFBIG
    try:
        writer.write(checkpoint(2))
        with pytest.raises(UserError, match="not written"):
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000001.json", "step-00000001.pt"]
    (said,) = caplog.messages
    assert "step 2" in said
    writer.write(checkpoint(3))
    writer.close()
    path, problems = newest_checkpoint(tmp_path)
    assert path.name == "step-00000003.pt" and problems == []


def test_the_last_two_and_the_best_are_kept(tmp_path):
    writer = CheckpointWriter(tmp_path, keep=2)
    errors = {1: None, 2: 9.0, 3: 5.0, 4: 7.0, 5: None, 6: 5.0, 7: None}
    for step, error in errors.items():
        writer.write(checkpoint(step), val_error=error)
        writer.wait()
    writer.close()
    assert checkpoint_steps(tmp_path) == [3, 6, 7]


def test_checkpoints_beyond_the_one_resumed_from_are_removed(tmp_path):
    writer = CheckpointWriter(tmp_path, keep=2)
    for step in (8, 12, 16):
        writer.write(checkpoint(step))
        writer.wait()
    writer.write(checkpoint(9))  # 12 and 16 were damaged, say, and the run went on from 8
    writer.close()
    assert checkpoint_steps(tmp_path) == [9]  # 8 had made room for 16
    for left in (".step-00000010.pt.abc", "step-00000010.pt"):
        (tmp_path / left).write_text("left by a killed process")
    CheckpointWriter(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000009.json", "step-00000009.pt"]


def test_a_slow_disk_delays_nothing_and_the_newest_checkpoint_wins(tmp_path):
    release, started = threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        release.wait(30)

    writer = CheckpointWriter(tmp_path, keep=9, on_written=slow)
    writer.write(checkpoint(1))
    assert started.wait(30)
    for step in (2, 3, 4):
        assert writer.write(checkpoint(step)) == 3 * 4 + 3 * 4 + 8 * 4 + 6 * 8  # bytes of its tensors
    release.set()
    writer.close()
    assert checkpoint_steps(tmp_path) == [1, 4]


def test_if_all_are_damaged_that_is_said(tmp_path):
    path = write_checkpoint(tmp_path, checkpoint(1))
    path.with_suffix(".json").write_text("[]")
    (tmp_path / "step-copy.json").write_text("not ours")
    found, problems = newest_checkpoint(tmp_path)
    assert found is None and "step-00000001.pt" in problems[0] and "step 0" in problems[1]


def test_without_checkpoints_there_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, [])


def test_another_run_s_checkpoint_is_passed_over_for_a_good_one(tmp_path):
    write_checkpoint(tmp_path, checkpoint(1))
    write_checkpoint(tmp_path, replace(checkpoint(2), run="another"))
    path, problems = newest_checkpoint(tmp_path, run="abc")
    assert path is not None and path.name == "step-00000001.pt"
    assert len(problems) == 1 and "belongs to the run another" in problems[0] and "falling back" in problems[0]


def test_another_version_s_checkpoint_is_not_passed_over(tmp_path):
    write_checkpoint(tmp_path, checkpoint(1))
    altered(write_checkpoint(tmp_path, checkpoint(2)), format=FORMAT + 1)
    with pytest.raises(CheckpointError, match="a newer version wrote it"):
        newest_checkpoint(tmp_path, run="abc")


@pytest.mark.parametrize("part", ["model", "optimizer", "statistics", "sums", "extra", "ema"])
def test_a_part_of_a_checkpoint_that_is_none_is_named(tmp_path, part):
    altered(write_checkpoint(tmp_path, checkpoint(1)), **{part: None})
    with pytest.raises(CheckpointError, match=rf"no complete checkpoint: .*\b{part}\b.* (is no|must be)"):
        read_checkpoint(tmp_path / "step-00000001.pt", run="abc")


def test_another_run_s_checkpoint_alone_is_refused(tmp_path):
    write_checkpoint(tmp_path, replace(checkpoint(2), run="another"))
    with pytest.raises(CheckpointError, match="belongs to the run another"):
        newest_checkpoint(tmp_path, run="abc")
