from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from resnet_pipeline.adapters.ray.aside import leaving_room
from resnet_pipeline.adapters.ray.cluster import Resources
from resnet_pipeline.adapters.ray.train import WorkerGroup
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.memory_dataset import EncodedDataset
from resnet_pipeline.errors import StoppedError, UserError
from resnet_pipeline.jobs.attempt import wait_for
from resnet_pipeline.jobs.follower import Follower
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.train import check_splits, run_config, train_run
from resnet_pipeline.progress import Bar, displayed_on, progress
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.attempt import Owner
from resnet_pipeline.training.metrics_log import MetricsLog, NoteEntry, ResumeEntry, ValidationEntry
from resnet_pipeline.training.run_directory import RunDirectory, run_name
from tests.metrics import training
from tests.recording import Recording


class Ended(WorkerGroup):
    """Workers that have ended already, as they do without retries."""

    def __init__(self) -> None:
        pass

    def finished(self) -> bool:
        raise RuntimeError("Ray's words")


@pytest.mark.parametrize("said", [True, False])
def test_a_worker_s_own_message_comes_before_the_end_of_the_workers(digits, tmp_path, said):
    config = with_overrides(get_recipe("digits/resnet8"), {"steps": 2})
    run = RunDirectory.create(tmp_path, config, digits.facts)
    if said:
        run.error_file.write_text("shard x is damaged")
    with pytest.raises(UserError, match="shard x is damaged" if said else "training failed: Ray's words"):
        wait_for(Ended(), run, Follower(run, config, Bar(), notes=True), lambda: True)


class Starting(WorkerGroup):
    """Workers that start; one claims the run after some looks at it, and ends with its order after some more."""

    def __init__(self, run: RunDirectory, claims: int | None) -> None:
        self._run, self._claims, self.looks = run, claims, 0

    def finished(self) -> bool:
        self.looks += 1
        if self.looks == self._claims:
            Owner.claim(self._run)
        return self.looks == 9


@pytest.mark.parametrize(("claims", "looks"), [(None, 5), (7, 5), (3, 9)])
def test_who_stops_before_the_workers_have_begun_waits_for_none(digits, tmp_path, claims, looks):
    run = RunDirectory.create(tmp_path, with_overrides(get_recipe("digits/resnet8"), {"steps": 2}), digits.facts)
    Owner.claim(run)  # of an earlier attempt
    group = Starting(run, claims)
    stopped = pytest.raises(StoppedError, match="the same command resumes it") if looks == 5 else nullcontext()
    with stopped:
        wait_for(group, run, Follower(run, run.config(), Bar(), notes=True), lambda: group.looks >= 5)
    assert group.looks == looks


def test_a_run_that_another_start_trains_is_left_alone(workspace, digits):
    config = run_config("digits/resnet8", steps=2)
    name = run_name(config, digits.fingerprint)
    with LocalStorage(workspace.runs).lease(f".{name}.lock"):
        with pytest.raises(UserError, match=rf"{name} is being trained; wait .*process {os.getpid()} of") as error:
            train_run(workspace, config, "digits", Launch(launcher="local"))
        assert "\n" not in str(error.value) and not (workspace.runs / name).exists()


@pytest.mark.parametrize("notes", [True, False])
def test_a_run_is_followed_from_its_metrics_file(digits, tmp_path, caplog, notes):
    caplog.set_level(logging.INFO, "resnet_pipeline.jobs")
    config = with_overrides(get_recipe("digits/resnet8"), {"steps": 20, "batch": 100, "micro_batch": 100})
    run, display = RunDirectory.create(tmp_path, config, digits.facts), Recording()
    run.metrics_file.write_text('{"kind": "note", "step": 1, "text": "of an earlier attempt"}\n')
    with displayed_on(display), progress("r", total=20, unit="steps", images_per_unit=100) as bar:
        follower = Follower(run, config, bar, notes=notes)
        log = MetricsLog(run.metrics_file)
        log.append(5, ResumeEntry(workers=2))
        log.append(6, NoteEntry(text="no room"))
        log.append(10, training(loss=1.25, error=40.0))
        follower.poll()
        assert (bar.counts(), bar.speed(), bar.left()) == ("10/20 steps", "1,000 images/s", "0:01 left")
        log.append(10, ValidationEntry(figures={"top1": 30.0, "top5": 3.0}))
        log.append(20, training(loss=0.5, error=20.0, epoch=1.0))
        follower.poll()
        log.append(20, ValidationEntry(figures={"rms_of_test": 0.25, "images": 60}))
        log.append(20, training(rms=0.12345, pixels=70000.0))
        log.close()
        follower.poll()
    shown = [(at.reached, at.detail) for at in display.shown]
    assert shown[-3:] == [
        (10, "epoch 0.5  loss 1.250  error 40.0 %"),
        (20, "epoch 1.0  loss 0.500  error 20.0 %  val error 30.00 %"),
        (20, "epoch 0.5  rms 0.1235  pixels 7e+04  val rms_of_test 0.25"),  # of a task of another kind
    ]
    said = ["digits/resnet8: 2 worker(s) resume from step 5", "digits/resnet8: no room"]
    assert caplog.messages == said[: 1 + notes]


def test_steps_and_seed_are_short_for_the_fields_and_not_said_twice():
    config = run_config("digits/resnet8", {"batch": 64}, steps=5, seed=3)
    assert (config.batch, config.steps, config.seed) == (64, 5, 3)
    assert run_config("digits/resnet8", {"seed": 3}).seed == 3, "no default of --seed goes before it"
    assert run_config("digits/resnet8") == get_recipe("digits/resnet8")
    with pytest.raises(UserError, match="seed is given twice"):
        run_config("digits/resnet8", {"seed": 3}, seed=4)


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ({"val": [0]}, "has no training images"),
        ({"train": [0]}, "neither a val nor a test split.*--holdout"),
        ({"train": [0], "test": [-1]}, "the classes of its test images are not known"),
        ({"train": [0], "val": [0], "test": [-1]}, None),
        ({"train": [0], "test": [0]}, None),
    ],
)
def test_what_can_t_be_validated_on_is_refused_before_the_first_step(splits, said):
    dataset = EncodedDataset([], [], [], ["a"])
    dataset.splits = {name: SimpleNamespace(labels=np.array(labels)) for name, labels in splits.items()}
    with pytest.raises(UserError, match=said) if said else nullcontext():
        check_splits(dataset)


@pytest.mark.parametrize(
    ("overrides", "launch", "said"),
    [
        (
            {"schedule.kind": "plateau", "schedule.warmup": 0},
            Launch(validate_aside=True),
            "follows the validation errors",
        ),
        ({}, Launch(validate_aside=True, launcher="local"), "needs workers on Ray"),
    ],
)
def test_what_can_t_be_validated_aside_is_refused_before_anything(workspace, overrides, launch, said):
    with pytest.raises(UserError, match=said) as error:
        train_run(workspace, run_config("digits/resnet8", overrides), "digits", launch)
    assert "\n" not in str(error.value) and not workspace.runs.exists()


def test_workers_leave_room_for_the_one_that_validates():
    resources = Resources(nodes=((8, 4), (8, 4)))
    assert leaving_room((4, 8), resources) == (4,)
    with pytest.raises(UserError, match=r"one worker more than the 8 that train, .* room for 8"):
        leaving_room((8,), resources)
