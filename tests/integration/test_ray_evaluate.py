"""Evaluation on Ray: the same scores as in one process, on any number of workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation import evaluate as evaluation
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.models import build_model
from resnet_pipeline.workspace import Workspace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]


def test_two_workers_give_the_scores_of_one_process(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(evaluation, "CHUNK_PIXELS", 600 * 32 * 32)
    torch.manual_seed(0)
    torch.save(build_model("cifar-resnet8").state_dict(), tmp_path / "8.pth")
    found = {}
    for workers in (None, 2):
        workspace = Workspace(tmp_path / f"work{workers}")
        workspace.datasets.mkdir(parents=True)
        (workspace.datasets / "digits").symlink_to(digits.path)
        (found[workers],) = evaluate_models(
            workspace, [f"cifar-resnet8={tmp_path / '8.pth'}"], "digits", "10-crop", workers=workers, quiet=True
        )
        assert not list(workspace.scores.glob("*/*/*/*.parts"))
    assert found[2].scores.keys == found[None].scores.keys == digits.splits["val"].keys
    np.testing.assert_array_equal(found[2].scores.probabilities, found[None].scores.probabilities)
    with pytest.raises(UserError, match="at most"):
        evaluate_models(workspace, [f"cifar-resnet8={tmp_path / '8.pth'}"], "digits", "center", workers=99, quiet=True)
