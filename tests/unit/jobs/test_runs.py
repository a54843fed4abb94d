from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import replace

import pytest

from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.runs import run_rows
from resnet_pipeline.jobs.train import run_config, train_run
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import MetricsLog, last_step
from resnet_pipeline.training.run_directory import RunDirectory
from tests.metrics import training

SMALL = {"steps": 8, "checkpoint_every": 4, "bn_images": 64}
HOLD = """
import sys
from pathlib import Path
from resnet_pipeline.training.run_directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).lease():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def stopped(workspace, digits):
    """Return a run that was asked to stop after its first steps."""
    run = RunDirectory.create(workspace.runs, run_config("digits/resnet8", {**SMALL, "optim.lr": 0.05}), digits.facts)
    asked = iter([False, False, True])
    train(run, digits, LocalContext(stop=lambda: next(asked, True)))
    return run


def test_a_stopped_run_is_interrupted_and_its_command_is_that_run(workspace, stopped):
    (row,) = run_rows(workspace)
    assert (row.state, row.recipe, row.dataset, row.seed) == ("interrupted", "digits/resnet8", "digits", 0)
    assert 0 < row.step < 8 == row.steps and row.error is None and row.run == stopped.name
    words = shlex.split(row.resume)
    assert words[:5] == ["resnet-pipeline", "train", "digits/resnet8", "--dataset", "digits"]
    assert words[words.index("--root") + 1] == str(workspace.root)
    given = dict(zip(words[5::2], words[6::2], strict=True))
    assert given["--steps"] == "8", "each option has a value, and the config is the run's"


def test_while_a_process_trains_it_the_run_is_running_and_after_a_kill_interrupted(workspace, stopped):
    log = MetricsLog(stopped.metrics_file)
    log.append(7, training())
    log.close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(stopped.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        (row,) = run_rows(workspace)
        assert (row.state, row.step, row.resume) == ("running", 7, None)
        holder.kill()
    (row,) = run_rows(workspace)
    assert row.state == "interrupted" and row.step < 7 and row.resume


def test_finished_failed_and_damaged_runs_say_so(workspace, stopped, digits):
    stopped.error_file.write_text("the loss is not finite\n")
    (row,) = run_rows(workspace)
    assert (row.state, row.error) == ("failed", "the loss is not finite") and row.resume
    done = train_run(workspace, run_config("digits/resnet8", SMALL), "digits", Launch(launcher="local"))
    rows = {row.run: row for row in run_rows(workspace)}
    finished = rows[done.run.name]
    assert (finished.state, finished.step, finished.resume) == ("finished", 8, None)
    done.run.weights_file.unlink()
    stopped.config_file.write_text('{"config": {}')
    rows = {row.run: row for row in run_rows(workspace)}
    assert rows[done.run.name].state == rows[stopped.name].state == "damaged"
    assert "weights.safetensors is lost" in rows[done.run.name].error
    assert "config.json" in rows[stopped.name].error and rows[stopped.name].resume is None


def test_the_last_step_is_read_from_the_end_of_a_long_file(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(1000):
        log.append(step, training())
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "st')
    assert (tmp_path / "metrics.jsonl").stat().st_size > 2 * 65536
    assert last_step(tmp_path / "metrics.jsonl") == 999 and last_step(tmp_path / "none") == 0


def test_a_recipe_that_is_not_known_any_more_has_no_command(workspace, digits):
    config = replace(run_config("digits/resnet8", SMALL), recipe="digits/gone")
    RunDirectory.create(workspace.runs, config, digits.facts)
    (row,) = run_rows(workspace)
    assert (row.state, row.recipe, row.resume) == ("interrupted", "digits/gone", None)
