"""A server of models needs the networks and the evaluation, and nothing of what trains them or draws."""

from __future__ import annotations

import subprocess
import sys

import torch

from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.models.weights import save_weights
from tests.images import jpeg

SERVE = """
import sys
from pathlib import Path
import pandas
from resnet_pipeline.adapters.mlflow_model import _load_pyfunc

model = _load_pyfunc(sys.argv[1])
found = model.predict(pandas.DataFrame({"image": [Path(sys.argv[2]).read_bytes()]}))
assert len(found["labels"][0]) == 5
unwanted = ("training", "jobs", "report", "recipes", "staging", "adapters.ray", "adapters.mlflow.registry")
names = tuple(f"resnet_pipeline.{name}" for name in unwanted)
print(sorted(m for m in sys.modules if m.startswith((*names, "ray.", "prefect.", "rich."))))
"""


def test_a_served_network_predicts_without_the_training_package(make_run, digits, tmp_path):
    run = make_run()
    network = build_model(run.config().model.name, num_classes=len(digits.classes))
    classifier = Classifier(Normalize(torch.full((3,), 128.0)), network)
    save_weights(classifier, run.weights_file, {})
    (tmp_path / "image.jpg").write_bytes(jpeg(40, 40))
    command = [sys.executable, "-c", SERVE, str(run.path), str(tmp_path / "image.jpg")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
