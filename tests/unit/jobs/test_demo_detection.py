"""`make demo-detection`: what it promises."""

from __future__ import annotations

import pytest
import torch

from resnet_pipeline.jobs.demo_detection import demo_detection
from resnet_pipeline.workspace import Workspace
from tests.workspaces import with_database


@pytest.mark.soak
def test_the_demo_s_detector_finds_digits_and_their_masks(tmp_path, mlflow_database):
    workspace = with_database(Workspace.of(tmp_path / "work"), mlflow_database)
    torch.set_num_threads(1)
    found = demo_detection(workspace)
    assert found.evaluation.boxes.ap50 >= 90 and found.evaluation.masks.ap50 >= 80
    assert found.version.version == "1" and "first champion" in found.promotion and found.picture.is_file()
    again = demo_detection(workspace)
    assert again.reused and again.evaluation.boxes == found.evaluation.boxes and not again.version.new
