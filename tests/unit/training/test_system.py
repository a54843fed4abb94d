"""GPU use where there is none to ask about; tests/gpu has the other case."""

from __future__ import annotations

import pytest
import torch

from resnet_pipeline.training.system import gpu_utilization


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: tests/gpu asks it")
def test_a_machine_without_nvidia_s_library_costs_a_figure_and_not_the_run():
    assert gpu_utilization(torch.device("cuda", 0)) == {}
