"""A detector's training, killed without a word and started again, ends with the weights of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from resnet_pipeline.sources.scenes import write_scenes
from resnet_pipeline.staging.stage import Source, pack
from resnet_pipeline.storage.local import LocalStorage
from tests.packing import InThisProcess

pytestmark = pytest.mark.soak

COMMAND = [
    sys.executable, "-m", "resnet_pipeline.cli", "train", "scenes/maskrcnn-resnet8-c4", "--dataset", "scenes",
    "--launcher", "local", "--no-register", "--steps", "8", "--set", "schedule.warmup=2", "--set", "checkpoint_every=2",
    "--set", "log_every=1", "--set", "detection.norm=batch", "--set", "optim.frozen_stages=null",
    "--set", "optim.lr=0.02",
]  # fmt: skip


def start(root, *more):
    environment = {**os.environ, "RESNET_PIPELINE_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*COMMAND, *more], env=environment, stderr=subprocess.DEVNULL)


def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(tmp_path):
    write_scenes(tmp_path / "source", {"train": 16, "val": 2})
    for name in ("whole", "killed"):
        place = LocalStorage(tmp_path / name / "datasets" / "scenes")
        pack(Source.at(tmp_path / "source"), place, name="scenes", workers=InThisProcess)
    assert start(tmp_path / "whole", "--json", str(tmp_path / "whole.json")).wait() == 0
    process = start(tmp_path / "killed")
    while not list((tmp_path / "killed").glob("runs/*/checkpoints/step-0000000[2-6].json")):
        assert process.poll() is None, "it ended before it had a checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").glob("runs/*/result.json"))
    assert start(tmp_path / "killed", "--json", str(tmp_path / "killed.json")).wait() == 0
    whole, killed = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "killed"))
    assert killed["weights_sha256"] == whole["weights_sha256"]
    (metrics,) = (tmp_path / "killed").glob("runs/*/metrics.jsonl")
    kinds = [json.loads(line)["kind"] for line in metrics.read_text().splitlines()]
    assert kinds.count("resume") == 2, "it resumed and did not begin anew"
