"""What a classifier's training imports before its first step: each of these is seconds of a core, in each process."""

import subprocess
import sys

import pytest

SLOW = {"torchvision", "torch._dynamo", "matplotlib", "mlflow", "pandas"}


@pytest.mark.parametrize(
    "module", ["flows.train", "resnet_pipeline.jobs.register_trained", "resnet_pipeline.adapters.ray.worker"]
)
def test_what_training_needs_not_is_not_imported(module):
    code = f"import sys, {module}; print(*sorted({SLOW} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == ""
