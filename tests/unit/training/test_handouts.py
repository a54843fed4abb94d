"""Validation aside: weights and errors of a run that waits for its validations; what is not tested stops nothing."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest

from resnet_pipeline.adapters.ray.aside import _Tester
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.handouts import Answer, Handouts
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import NoteEntry, ValidationEntry, complete_lines
from resnet_pipeline.training.mirror import keep
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.signals import FileSignals
from tests.metrics import entries

SMALL = ("steps=13", "eval_every=4", "checkpoint_every=5", "log_every=3")


@contextmanager
def answering(run, dataset, answer=None):
    """Test what the run hands out, in a thread with the worker's code; ``answer`` gives another answer to a step."""
    worker, handouts, ended = (
        _Tester(run, run.path.parent, dataset.storage.url, 1),
        Handouts(run),
        threading.Event(),
    )

    def work():
        while not ended.wait(0.01):
            for step in handouts.asked():
                handouts.answer(step, (answer or worker.test)(step))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("apart", [False, True])
def test_validated_aside_a_run_has_the_weights_and_errors_of_one_that_waits(make_run, digits, tmp_path, apart):
    waiting, aside = make_run(*SMALL, folder="waiting"), make_run(*SMALL, folder="aside")
    home = LocalStorage(tmp_path / "home")
    if apart:  # who tests has a directory of its own, and the files are at the run's home
        aside = RunDirectory(aside.path, home=home, signals=FileSignals(tmp_path / "signals", shared=False))
        keep(aside, aside.config_file)
    assert train(waiting, digits, LocalContext())
    # stopped after step 7, with the network of step 4 tested by nobody; then resumed
    stops = iter([False] * 6 + [True])
    assert not train(aside, digits, LocalContext(stop=lambda: next(stops)), aside=True)
    assert Handouts(aside).asked() == [4] and entries(aside, ValidationEntry) == []
    with answering(aside, digits):
        assert train(aside, digits, LocalContext(), aside=True)
    one, other = waiting.result(), aside.result()
    assert other.weights_sha256 == one.weights_sha256
    assert (other.validation, other.best) == (one.validation, one.best)
    assert entries(aside, ValidationEntry) == entries(waiting, ValidationEntry)
    # in the file's own order too, of lines (what has delivered a step to MLflow sends none before it) and of figures,
    # the first of which is shown
    steps = [line.step for line in complete_lines(aside.metrics_file) if isinstance(line.entry, ValidationEntry)]
    assert steps == [4, 8, 12, 13]
    shown = {next(iter(entry.figures)) for _, entry in entries(aside, ValidationEntry)}
    assert shown == {next(iter(entry.figures)) for _, entry in entries(waiting, ValidationEntry)}
    # the best of those that were tested aside stays, and nothing else
    where = home if apart else LocalStorage(aside.path)
    assert [stored.name for stored in where.files("tests/")] == ["tests/best.safetensors"]


def test_a_run_that_is_resumed_and_waits_leaves_nothing_that_was_handed_out(make_run, digits):
    run = make_run(*SMALL)
    stops = iter([False] * 4 + [True])
    assert not train(run, digits, LocalContext(stop=lambda: next(stops)), aside=True)
    assert Handouts(run).asked() == [4]
    assert train(run, digits, LocalContext())
    assert list((run.path / "tests").iterdir()) == []


def test_what_is_not_tested_is_said_and_stops_nothing(make_run, digits):
    run = make_run(*SMALL)
    with answering(run, digits, lambda step: Answer(problem="its worker was lost")):
        assert train(run, digits, LocalContext(), aside=True)
    notes = [entry.text for _, entry in entries(run, NoteEntry)]
    assert notes == [f"the network of step {step} was not tested: its worker was lost" for step in (4, 8, 12)]
    assert [step for step, _ in entries(run, ValidationEntry)] == [13] == [run.result().best["step"]]


def test_a_stop_ends_the_waiting_for_tests_and_the_run_is_finished(make_run, digits):
    run = make_run(*SMALL)
    stop = threading.Event()
    waiting = threading.Thread(target=lambda: train(run, digits, LocalContext(stop=stop.is_set), aside=True))
    waiting.start()
    while Handouts(run).asked()[-1:] != [12] or "step-00000013" not in str(list(run.checkpoints.iterdir())):
        time.sleep(0.01)
    assert run.result() is None
    stop.set()
    waiting.join(60)
    assert run.result().best["step"] == 13 and Handouts(run).asked() == []


def test_a_network_that_is_damaged_on_its_way_is_not_tested(make_run, digits):
    run = make_run(*SMALL)
    stops = iter([False] * 4 + [True])
    assert not train(run, digits, LocalContext(stop=lambda: next(stops)), aside=True)
    path = Handouts(run).weights(4)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    answer = _Tester(run, run.path.parent, digits.storage.url, 1).test(4)
    assert answer.problem is not None and path.name in answer.problem and "\n" not in answer.problem
