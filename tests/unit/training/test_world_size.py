"""The same recipe on 1, 2 and 4 processes, and with their number changed in the middle, is the same arithmetic."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from resnet_pipeline.training.metrics_log import ProfileEntry, TrainEntry
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.signals import PROFILE
from tests.launching import Started
from tests.metrics import entries, losses, steps_of

# Four processes that train run after run: `plan` says, for each, which of them share it and where it stops.
WORKER = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory

me, plan, dataset = int(sys.argv[1]), json.loads(sys.argv[2]), Dataset.open(Path(sys.argv[3]))
torch.set_num_threads(1)
for number, (path, ranks, stop_at, address) in enumerate(plan):
    if me not in ranks:
        continue
    world, polls = len(ranks), iter(range(stop_at or 10**9))
    if world > 1:
        dist.init_process_group("gloo", init_method=address, rank=ranks.index(me), world_size=world)
    context = LocalContext(rank=ranks.index(me), world_size=world, stop=lambda: next(polls, None) is None)
    train(RunDirectory.open(Path(path)), dataset, context)
    if world > 1:
        dist.destroy_process_group()
"""


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def all_losses(run: RunDirectory) -> list[float]:
    assert steps_of(run, TrainEntry) == list(range(1, run.config().steps + 1))
    return losses(run)


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_the_arithmetic(make_run, digits):
    def run(name: str, precision: str, *more: str) -> RunDirectory:
        small = ["steps=50", "batch=32", "micro_batch=8", "log_every=1", "eval_every=50", "checkpoint_every=50"]
        return make_run(*small, "bn_images=32", f"precision={precision}", *more, folder=f"{precision}-{name}")

    double = {name: run(name, "float64") for name in ("1", "2", "4", "changed")}
    single = {name: run(name, "float32") for name in ("1", "4")}
    today = ["optim.ema=0.9", "optim.label_smoothing=0.1", "optim.decay_norm=false", "growth.first=8", "compile=true"]
    fast = {name: run(name, "bf16", *today, "growth.multiple=4", "steps=8") for name in ("1", "2")}
    plan = [
        (double["4"], [0, 1, 2, 3], None),
        (single["4"], [0, 1, 2, 3], None),
        (double["1"], [0], None),
        (single["1"], [0], None),
        (fast["1"], [3], None),
        (double["2"], [1, 2], None),
        (fast["2"], [1, 2], None),
        (double["changed"], [1, 2], 24),
        (double["changed"], [1], None),
    ]
    fast["2"].signals.put(PROFILE)
    text = json.dumps([(str(r.path), ranks, stop, free_address()) for r, ranks, stop in plan])
    processes = [Started(WORKER, [str(rank), text, str(digits.path)], os.environ) for rank in range(4)]
    assert [process.wait(200) for process in processes] == [0] * 4
    assert read_kinds(double["changed"].metrics_file).count("resume") == 2, "it started, and resumed"
    for name in ("2", "4", "changed"):
        np.testing.assert_allclose(all_losses(double[name]), all_losses(double["1"]), rtol=1e-5, err_msg=name)
    ((_, profile),) = entries(fast["2"], ProfileEntry)
    assert 0 < profile.communication < 1 and len(list(fast["2"].profile.glob("trace-rank*.json"))) == 2
    np.testing.assert_allclose(all_losses(fast["2"]), all_losses(fast["1"]), rtol=0.05)
    # float32: rounding differs with the order of additions, and training amplifies it from step to step
    apart = np.abs(np.array(all_losses(single["4"])) / all_losses(single["1"]) - 1)
    exact = {n: max(abs(np.array(all_losses(double[n])) / all_losses(double["1"]) - 1)) for n in ("2", "4", "changed")}
    print(
        f"relative difference of losses: float64 {exact}; float32 {apart[:5].max():.1e} in 5 steps, {apart.max():.1e}"
    )
    assert apart[:5].max() < 1e-4 and apart.max() < 0.3


def read_kinds(path: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in path.read_text().splitlines()]
