from __future__ import annotations

import json

from resnet_pipeline.jobs.train import run_config
from resnet_pipeline.training.run_directory import RunDirectory


def test_runs_lists_what_is_there_and_how_to_resume_it(run, workspace, digits, tmp_path):
    code, out, err = run("runs")
    assert (code, out, err) == (0, f"no runs under {workspace.runs}\n", "")
    made = RunDirectory.create(workspace.runs, run_config("digits/resnet8", steps=7, seed=3), digits.facts)
    code, out, err = run("runs", "--json", str(tmp_path / "runs.json"))
    assert code == 0, err
    (row,) = json.loads((tmp_path / "runs.json").read_text())
    wanted = "resnet-pipeline train digits/resnet8 --dataset digits --steps 7 --seed 3"
    assert row == {
        "run": made.name, "path": str(made.path), "state": "interrupted", "recipe": "digits/resnet8",
        "dataset": "digits", "seed": 3, "step": 0, "steps": 7, "error": None, "resume": wanted,
    }  # fmt: skip
    assert wanted in out.splitlines() and "0/7" in out and "interrupted" in out
