from __future__ import annotations

import json
import random
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from torch._C._autograd import DeviceType

from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import Trainer, train
from resnet_pipeline.training.metrics_log import ProfileEntry
from resnet_pipeline.training.profile import covered, describe, gpu_shares, shares, window
from resnet_pipeline.training.signals import PROFILE
from resnet_pipeline.training.tasks import ClassificationTask
from resnet_pipeline.training.throughput import WAITING
from tests.metrics import entries


def profiled(run, digits, slow: float = 0.0) -> ProfileEntry:
    """Train a run with a request for a profile, each micro-batch ``slow`` seconds late; return its entry."""
    run.signals.put(PROFILE)
    task = ClassificationTask(run.config(), digits, LocalContext())

    @contextmanager
    def late(start_step, steps):
        with task.batches(start_step, steps) as batches:
            yield (time.sleep(slow) or batch for batch in batches)

    trainer = Trainer(run, digits, LocalContext(), task=task, open_batches=late)
    trainer.run_to_end()
    trainer.close()
    ((_, entry),) = entries(run, ProfileEntry)
    return entry


@pytest.mark.slow
def test_a_profiled_run_is_the_same_run_and_leaves_a_trace(make_run, digits):
    plain, run = make_run("steps=16", folder="plain"), make_run("steps=16", folder="profiled")
    train(plain, digits, LocalContext())
    found = profiled(run, digits)
    assert run.name == plain.name
    assert run.result().weights_sha256 == plain.result().weights_sha256
    assert found.data + found.compute + found.communication + found.host == pytest.approx(1, abs=1e-4)
    assert found.communication == 0 and found.seconds_per_step > 0
    names = {event.get("name") for event in json.loads((run.profile / "trace-rank0.json").read_text())["traceEvents"]}
    assert WAITING in names and "aten::convolution" in names
    assert run.signals.get(PROFILE) is None


@pytest.mark.slow
def test_a_slow_loader_is_what_the_step_is_bound_by(make_run, digits):
    found = profiled(make_run("steps=6"), digits, slow=0.3)
    assert found.data > 0.5 and "bound by data" in describe(found)


def test_the_window_fits_into_what_is_left():
    assert window(1000) == (5, 20, 5)
    for steps in range(3, 40):
        warmup, measured, traced = window(steps)
        assert measured >= 1 and traced >= 1 and warmup + measured + traced <= steps


def test_shares_are_those_of_each_moment():
    draw = random.Random(0)

    def intervals():
        starts = [draw.randrange(100) for _ in range(6)]
        return [(float(s), float(s + draw.randrange(1, 12))) for s in starts]

    for _ in range(20):
        kernels, exchanges, waiting = intervals(), intervals(), intervals()
        everything = kernels + exchanges + waiting
        counts = {"compute": 0, "communication": 0, "data": 0, "host": 0}
        for moment in range(int(min(s for s, _ in everything)), int(max(e for _, e in everything))):
            at = [any(s <= moment < e for s, e in part) for part in (kernels, exchanges, waiting)]
            counts[[*counts][at.index(True) if True in at else 3]] += 1
        whole = sum(counts.values())
        assert shares(kernels, exchanges, waiting) == pytest.approx({k: v / whole for k, v in counts.items()})
        assert covered(everything) == whole - counts["host"]


def test_a_gpu_s_trace_is_sorted_by_what_its_events_are():
    def event(start, end, name, device=DeviceType.CUDA):
        return SimpleNamespace(time_range=SimpleNamespace(start=start, end=end), name=name, device_type=device)

    events = [
        event(0, 50, "implicit_convolve_sgemm"),
        event(40, 60, "ncclDevKernel_AllReduce_Sum_f32_RING_LL"),
        event(60, 90, WAITING, DeviceType.CPU),
        event(95, 100, "vectorized_elementwise_kernel"),
        event(0, 100, "aten::conv2d", DeviceType.CPU),
    ]
    assert gpu_shares(events) == pytest.approx({"compute": 0.55, "communication": 0.1, "data": 0.3, "host": 0.05})
