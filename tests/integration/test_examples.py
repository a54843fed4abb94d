"""The scripts of examples/, run as a user runs them, against what they should find."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.scores import score_path, write_scores
from resnet_pipeline.jobs.evaluate import evaluate_models
from tests.s3_server import settings
from tests.workspaces import add_short_run, with_digits

pytestmark = pytest.mark.integration
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, digits):
    """Return a workspace with what the examples find after `make demo`, in little: a network and score files of two."""
    workspace = with_digits(tmp_path_factory.mktemp("examples") / "work", digits)
    add_short_run(workspace, digits, "digits-resnet20", steps=4)  # a run directory stands before a registered network
    (found,) = evaluate_models(workspace, ["digits-resnet20"], TestSpec(dataset="digits", protocol="center"))
    # a second member that guesses at random
    chance = np.random.default_rng(0).dirichlet(np.ones(10), len(found.scores.keys)).astype(np.float32)
    other = replace(found.scores, model="chance", weights_sha256="f" * 64, probabilities=chance)
    where = {"dataset_fingerprint": other.dataset_fingerprint, "split": other.split, "protocol": other.protocol}
    write_scores(other, score_path(workspace.scores, weights_sha256=other.weights_sha256, **where))
    return workspace


@pytest.fixture
def run_example(workspace):
    def run(name: str) -> dict[str, Any]:
        with settings(RESNET_PIPELINE_ROOT=str(workspace.root)):
            return runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


def test_images_are_predicted(run_example, digits):
    found = run_example("predict.py")
    assert found["best"].classes.shape == (8, 3) and found["ten"].classes.shape == (8, 1)
    assert found["batch"].labels.tolist() == digits.splits["val"].labels[:8].tolist()


def test_batches_hold_the_validation_images(run_example, digits):
    counted = run_example("batches.py")["images_per_class"]
    np.testing.assert_array_equal(counted, np.bincount(digits.splits["val"].labels, minlength=10))


def test_a_network_is_trained_and_its_error_is_the_run_s(run_example):
    found = run_example("train.py")
    assert [step for step, _ in found["validations"]] == [10, 20]
    one_image, (_, last) = 100 / found["images"], found["validations"][-1]
    assert found["wrong"] * one_image == pytest.approx(last.figures["top1"], abs=1.01 * one_image)


def test_the_ensemble_is_the_mean_of_both_score_files(run_example):
    found = run_example("ensemble.py")
    first, second = (member.probabilities.astype(np.float64) for member in found["members"])
    np.testing.assert_allclose(found["mean"].probabilities, (first + second) / 2, atol=1e-6)
    weights = {member.model: weight for member, weight in zip(found["members"], found["weights"], strict=True)}
    assert weights["chance"] < 0.2, "who guesses at random counts for little"


def test_every_example_is_run_here():
    run = {"predict.py", "batches.py", "train.py", "ensemble.py"}
    elsewhere = {"blood_cells.py"}  # tests/unit/jobs/test_finetune.py
    assert {file.name for file in EXAMPLES.glob("*.py")} == run | elsewhere
    assert all(f"({name})" in (EXAMPLES / "README.md").read_text() for name in run | elsewhere)
