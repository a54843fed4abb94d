"""A run whose home is elsewhere: directories are copies, and what is at home counts."""

from __future__ import annotations

import shutil

import pytest

from resnet_pipeline.adapters.mlflow.runs import Delivery
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.references import parse_run
from resnet_pipeline.jobs.runs import run_rows
from resnet_pipeline.jobs.train import run_config, train_run
from resnet_pipeline.storage.base import HeldError
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.attempt import Owner, TakenOverError
from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import MetricsCopy, TrainEntry
from resnet_pipeline.training.mirror import adopt, fetch_checkpoint, fetch_newer, keep
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.signals import OWNER, FileSignals
from resnet_pipeline.workspace import Workspace
from tests.metrics import entries
from tests.unit.training.test_mirror import Away, stopping_after


def copy(make_run, folder: str, home) -> RunDirectory:
    run = make_run(folder=folder)
    return RunDirectory(run.path, home=home)


@pytest.mark.slow
def test_a_run_goes_on_from_its_home_and_is_finished_there(make_run, digits, tmp_path):
    home = LocalStorage(tmp_path / "home")
    whole = make_run(folder="whole")
    train(whole, digits, LocalContext())
    first = copy(make_run, "first", home)
    assert not train(first, digits, stopping_after(7))
    assert home.stat("checkpoints/step-00000007.pt") and not home.stat("result.json")
    shutil.rmtree(first.path)
    second = copy(make_run, "second", home)
    assert train(second, digits, LocalContext())
    assert second.result().weights_sha256 == whole.result().weights_sha256
    # the one with the lowest error too, which the first start may have written
    here = {path.name for path in second.checkpoints.iterdir()}
    assert {stored.name.removeprefix("checkpoints/") for stored in home.files("checkpoints/")} == here
    assert {path.name for path in whole.checkpoints.iterdir()} == here
    third = copy(make_run, "third", home)
    adopt(third)
    assert third.result() == second.result() and checkpoint_steps(third.checkpoints) == []
    third.check_weights(third.result().weights_sha256)
    histories = [[(step, e.figures) for step, e in entries(run, TrainEntry)] for run in (whole, third)]
    assert histories[0] == histories[1] and len(histories[0]) == 6


@pytest.mark.slow
def test_a_machine_with_later_checkpoints_brings_the_one_that_all_resume_from(make_run, digits, tmp_path):
    home = LocalStorage(tmp_path / "home")
    assert not train(copy(make_run, "lost", home), digits, stopping_after(3))  # what was sent when its machine was lost
    later = make_run(folder="later")
    assert not train(later, digits, stopping_after(9))
    run = RunDirectory(later.path, home=home)
    fetch_newer(run, home, history=False)
    before = checkpoint_steps(run.checkpoints)
    assert 3 not in before and before[-1] == 9
    fetch_checkpoint(run, home, 3)
    assert checkpoint_steps(run.checkpoints) == [3, *before]
    fetch_checkpoint(run, home, 4)  # is not there
    assert checkpoint_steps(run.checkpoints) == [3, *before]


@pytest.mark.slow
def test_a_home_that_is_away_at_the_end_leaves_the_run_unfinished(make_run, digits, tmp_path):
    home = Away(tmp_path / "home")
    home.root.mkdir()
    run = copy(make_run, "run", home)
    with pytest.raises(UserError, match="does not answer"):
        train(run, digits, LocalContext(stop=lambda: bool((home.root / "away").touch())))
    assert run.result() is None
    with pytest.raises(UserError, match="does not answer"):
        train(run, digits, LocalContext())  # it can't know what is there
    (home.root / "away").unlink()
    assert train(run, digits, LocalContext()) and home.stat("result.json")


@pytest.mark.slow
def test_jobs_find_runs_at_home(workspace, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_PIPELINE_RUNS", str(tmp_path / "home"))
    config = run_config("digits/resnet8", {"bn_images": 128}, steps=4)
    trained = train_run(workspace, config, "digits", Launch(launcher="local"))
    other = Workspace(tmp_path / "other")
    monkeypatch.setenv("RESNET_PIPELINE_DATA", workspace.data)
    (row,) = run_rows(other)
    assert (row.state, row.step, row.path) == ("finished", 4, str(tmp_path / "home" / trained.run.name))
    assert not (other.runs / trained.run.name / "weights.safetensors").exists(), "a list needs no weights"
    folder = parse_run(other, trained.run.name).path
    assert (folder / "weights.safetensors").exists()
    again = train_run(other, config, "digits", Launch(launcher="local"))
    assert again.reused and again.result == trained.result
    assert Delivery.of(again.run).run_id == trained.mlflow_run or again.mlflow_run  # its MLflow has no run of that id


def test_a_run_is_held_at_its_home(make_run, tmp_path):
    home = LocalStorage(tmp_path / "home")
    here, there = (RunDirectory(tmp_path / name / "run", home=home) for name in ("here", "there"))
    with here.lease() as check:
        check()
        with pytest.raises(HeldError), there.lease():
            pass
    third = RunDirectory(tmp_path / "third" / "run", home=home)
    # a driver on a cluster, who follows it, and another one
    with here.home_lease(), there.lease(following=True), pytest.raises(HeldError), third.lease(following=True):
        pass


def test_metrics_that_have_come_further_here_stay(make_run, tmp_path):
    home = LocalStorage(tmp_path / "home")
    run = copy(make_run, "run", home)
    lines = [b'{"kind": "note", "step": %d, "time": 1.0, "text": "x"}\n' % step for step in (1, 2, 3)]
    MetricsCopy(run.metrics_file).take(lines[:2])
    keep(run, run.metrics_file)
    copied = MetricsCopy(run.metrics_file)
    copied.take(lines)  # some of them are there
    copied.take(lines[2:])
    adopt(run)
    assert run.metrics_file.read_bytes() == b"".join(lines)
    run.metrics_file.write_bytes(lines[0])
    adopt(run)
    assert run.metrics_file.read_bytes() == b"".join(lines[:2])


def test_an_attempt_that_was_replaced_on_another_machine_ends(make_run, tmp_path):
    board = FileSignals(tmp_path / "board", shared=False)
    here, there = (RunDirectory(make_run(folder=name).path, signals=board) for name in "ab")
    first = Owner(here, Owner.claim(here))
    first.check()
    Owner.claim(there)
    with pytest.raises(TakenOverError):
        first.check()
    assert Owner.of(here) == there.signals.get(OWNER) != Owner.here(here)
