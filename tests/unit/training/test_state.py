"""The training state through a checkpoint file, alone and onto another number of ranks."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from resnet_pipeline.training.batch_norm import flatten_statistics
from resnet_pipeline.training.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.optim import set_lr
from resnet_pipeline.training.state import TrainingState
from resnet_pipeline.training.step import FiniteGuard, train_step
from resnet_pipeline.training.tasks import ClassificationTask, Figures

CHANGES = ["schedule.kind=plateau", "schedule.patience=1", "optim.ema=0.9", "optim.decay_norm=false"]


@pytest.fixture
def task(make_run, digits) -> ClassificationTask:
    return ClassificationTask(make_run(*CHANGES).config(), digits, LocalContext())


@pytest.fixture
def fresh(make_run, task):
    """Return a function that makes the state of before the first step."""
    config = make_run(*CHANGES).config()
    return lambda: TrainingState(task, config, LocalContext(), run="r", precision="float32")


def advance(state: TrainingState, task: ClassificationTask, steps: int) -> None:
    guard = FiniteGuard(state.optimizer, torch.device("cpu"))
    with task.batches(state.step, steps) as batches:
        for _ in range(steps):
            micro_batches = [next(batches), next(batches)]
            set_lr(state.optimizer, state.schedule.lr(state.step))
            train_step(state.network, task, state.optimizer, guard, state.sums, micro_batches, step=state.step)
            state.average.update(state.step)
            state.step += 1


def leaves(value) -> list:
    """Return all values within a state, tensors as lists, in order."""
    if isinstance(value, torch.Tensor):
        return [value.tolist()]
    if isinstance(value, dict):
        return [leaf for key in value for leaf in (key, *leaves(value[key]))]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def through_a_file(state: TrainingState, folder):
    return read_checkpoint(write_checkpoint(folder, state.state_dict()), run="r")


@pytest.mark.slow
def test_a_state_comes_out_of_a_file_as_it_went_in(fresh, task, tmp_path):
    state, restored = fresh(), fresh()
    advance(state, task, 3)
    state.take_training(Figures({"loss": 2.0, "error": 60.0}, error="error"))
    state.seconds = 1.5
    for error in (50.0, 55.0):  # which the plateau counts
        state.take_validation(Figures({"top1": error, "top5": 9.0, "images": 10}, error="top1"))
    advance(state, task, 1)
    assert state.best == {"step": 3, "top1": 50.0} and state.schedule.state.drops == 1
    restored.load_state_dict(through_a_file(state, tmp_path))
    assert leaves(restored.state_dict().payload()) == leaves(state.state_dict().payload())
    assert (restored.step, restored.seconds, restored.last_train) == (4, 1.5, {"loss": 2.0, "error": 60.0})
    for each in (state, restored):
        advance(each, task, 2)
    assert leaves(restored.state_dict().payload()) == leaves(state.state_dict().payload())


def test_a_checkpoint_has_the_fields_of_format_2(fresh):
    payload = fresh().state_dict().payload()
    assert set(payload) == {"format", "step", "run", "model", "optimizer", "statistics", "sums", "extra", "ema"}
    assert payload["format"] == 2 and payload["sums"].shape == (1, 3) and payload["sums"].dtype == torch.float64
    assert set(payload["extra"]) == {"schedule", "seconds", "last_train", "best"}


def test_another_number_of_ranks_takes_mean_statistics_and_total_sums(fresh):
    two, state = fresh().state_dict(), fresh()
    size = two.statistics.shape[1]
    statistics = torch.stack([torch.full((size,), 1.0), torch.full((size,), 4.0)])
    sums = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], dtype=torch.float64)
    state.load_state_dict(dataclasses.replace(two, statistics=statistics, sums=sums))
    assert flatten_statistics(state.network).equal(torch.full((size,), 2.5))
    assert state.sums.read() == {"loss": 11.0, "wrong": 22.0, "images": 33.0}


def test_the_error_of_a_validation_is_that_of_its_step_alone(fresh):
    state = fresh()
    assert state.validated_error is None
    assert state.take_validation(Figures({"top1": 7.0}, error="top1"))
    assert not state.take_validation(Figures({"top1": 7.0}, error="top1"))  # the first of equals
    assert state.validated_error == 7.0
    state.step += 1
    assert state.validated_error is None


@pytest.mark.parametrize("part", ["model", "optimizer", "statistics", "sums"])
def test_a_checkpoint_with_an_empty_part_is_refused_in_one_line(fresh, part):
    state = fresh()
    empty = torch.zeros(1, 0) if part in ("statistics", "sums") else {}
    with pytest.raises(CheckpointError, match="the checkpoint of step 0 of r") as error:
        state.load_state_dict(dataclasses.replace(fresh().state_dict(), **{part: empty}))
    assert "\n" not in str(error.value)
