"""What training and tests would take elsewhere, on the command line."""

from __future__ import annotations

import json

import pytest
import torch

from resnet_pipeline.models import build_model


def test_a_plan_starts_nothing_and_counts_hours_and_money(run, workspace, tmp_path):
    file = tmp_path / "plan.json"
    options = ("--dataset", "digits", "--json", str(file), "--hardware", "8xa100", "--price", "32")
    status, text, _ = run("train", "imagenet/resnet152", *options)
    plan = json.loads(file.read_text())
    assert status == 0 and "600,000 steps of 256 images" in text
    assert "at 32.00 an hour" in text and "not measured here" in text
    assert plan["cost"] == pytest.approx(32 * plan["hours"]) and plan["disk_bytes"] > 3 * 2 * 60e6 * 4
    assert not workspace.runs.exists()


def test_hardware_that_can_t_do_it_is_one_line(run, workspace):
    for hardware, said in (
        ("16xa100", "workers=16 can't share a batch of 256"),
        ("8xtpu", "must be a number and one of"),
    ):
        status, _, error = run("train", "imagenet/resnet152", "--dataset", "digits", "--hardware", hardware)
        assert status == 2 and said in error and error.count("\n") == 1


def test_recipes_on_named_hardware_have_hours_and_a_price(run, tmp_path):
    file = tmp_path / "recipes.json"
    status, table, _ = run("recipes", "--hardware", "64xh100", "--price", "200", "--json", str(file))
    rows = json.loads(file.read_text())
    assert status == 0 and "imagenet/resnet50" not in table
    (row,) = [row for row in rows if row["recipe"] == "imagenet-2k/resnet152"]
    assert f"{200 * row['hours']:,.2f}" in table


def test_a_test_s_plan_starts_nothing_and_counts_hours_and_money(run, workspace, tmp_path):
    torch.save(build_model("cifar-resnet8").state_dict(), tmp_path / "8.pth")
    file, model = tmp_path / "plan.json", f"cifar-resnet8={tmp_path / '8.pth'}"
    options = ("--dataset", "digits", "--protocol", "10-crop", "--json", str(file), "--hardware", "8xh100")
    status, text, _ = run("evaluate", model, *options, "--price", "32")
    found = json.loads(file.read_text())
    (plan,) = found["models"]
    assert status == 0 and f"{model}: 364 images of val, 10 views of each" in text
    assert "at 32.00 an hour" in text and "Not measured here" in text and text.count("\n") == 1
    assert plan["cost"] == pytest.approx(32 * plan["hours"]) and found["protocol"] == "10-crop"
    assert not workspace.scores.exists()
    status, _, error = run("evaluate", model, "--dataset", "digits", "--hardware", "8xtpu")
    assert status == 2 and "must be a number and one of" in error and error.count("\n") == 1
