"""GPU use where there is none to ask about; tests/gpu has the other case."""

from __future__ import annotations

import pytest
import torch

from resnet_pipeline.training.system import gpu_utilization


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: tests/gpu asks it")
def test_without_nvidia_s_library_a_figure_is_missing_not_the_run():
    assert gpu_utilization(torch.device("cuda", 0)) == {}
