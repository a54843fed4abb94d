"""The model of benchmarks/scaling.py at its limits, and beside what was published."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "scaling.py"
spec = importlib.util.spec_from_file_location("scaling", PATH)
assert spec and spec.loader
scaling = sys.modules["scaling"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scaling)

STEADY = replace(scaling.H100, spread=0.0)
SLOW = replace(STEADY, between=1e9, overlap=0.0)


def test_one_gpu_only_computes():
    step = scaling.step_time(scaling.H100, nodes=1, gpus=1, batch=70)
    assert (step.exchange, step.exposed, step.waiting, step.data) == (0, 0, 0, 0)
    assert (
        step.seconds == pytest.approx(scaling.H100.fixed + 70 / scaling.H100.images_per_second)
        and step.bound_by == "compute"
    )
    assert scaling.efficiency(scaling.H100, nodes=1, gpus=1, batch=70) == 1


def test_with_a_perfect_network_and_equal_workers_nothing_is_lost():
    perfect = replace(STEADY, inside=math.inf, between=math.inf, latency=0.0, overlap=0.0)
    for nodes in (1, 2, 64, 1000):
        assert scaling.efficiency(perfect, nodes=nodes, gpus=8, batch=400 * nodes) == pytest.approx(1)


def test_a_ring_sends_twice_its_bytes_at_most_and_a_tree_is_shallower():
    for nodes in (1, 2, 3, 8, 100):
        sent = scaling.ring(nodes, 1e6, 1e6, 0.0)
        assert sent == pytest.approx(2 * (nodes - 1) / nodes)  # what an all-reduce must send (Patarasuk, Yuan, 2009)
    assert scaling.ring(1, 1e6, 1e6, 1.0) == scaling.tree(1, 1e6, 1e6, 1.0) == 0
    # many nodes and little to send: latency decides, and the tree wins; much to send on few nodes: the ring
    assert scaling.tree(1024, 1e3, 1e9, 1e-3) < scaling.ring(1024, 1e3, 1e9, 1e-3)
    assert scaling.ring(4, 1e9, 1e9, 1e-6) < scaling.tree(4, 1e9, 1e9, 1e-6)


def test_only_what_the_backward_pass_does_not_hide_costs_time():
    shape = {"nodes": 4, "gpus": 8, "batch": 1_600}
    open_, hidden = scaling.step_time(SLOW, **shape), scaling.step_time(replace(SLOW, overlap=1.0), **shape)
    assert open_.exposed == open_.exchange > 0 and open_.bound_by == "communication"
    assert open_.exposed - hidden.exposed == pytest.approx(min(open_.exchange, scaling.BACKWARD * open_.compute))


def test_more_of_anything_bad_is_never_faster():
    shape = {"nodes": 16, "gpus": 8, "batch": 6_400}
    base = scaling.images_per_second(scaling.H100, **shape)
    for worse in (
        {"between": 1e8}, {"inside": 1e9}, {"latency": 0.1}, {"spread": 0.2}, {"storage": 1e7}, {"decoding": 100.0},
        {"fixed": 0.1},
    ):  # fmt: skip
        assert scaling.images_per_second(replace(scaling.H100, **worse), **shape) < base, worse


def test_a_slow_storage_bounds_the_step():
    step = scaling.step_time(replace(STEADY, storage=1e6), nodes=2, gpus=8, batch=800)
    assert step.bound_by == "data" and step.seconds == pytest.approx(400 * scaling.IMAGE_BYTES / 1e6)


def test_the_model_predicts_published_runs_that_it_was_not_fitted_to():
    assert scaling.misses(scaling.MACHINES) == []
    predicted = [run for run in scaling.PUBLISHED if not run.fitted]
    assert len(predicted) > len(scaling.PUBLISHED) - len(predicted)
    shows = [run for run in predicted if exposed(run) > 0]
    assert {run.machine for run in shows} == {"rdma-25", "tcp-40"}, "a wrong exchange would be seen"


def exposed(run) -> float:
    machine = replace(scaling.MACHINES[run.machine], parameters=scaling.PARAMETERS[run.network])
    machine = replace(machine, images_per_second=run.alone or machine.images_per_second)
    return scaling.step_time(machine, nodes=run.nodes, gpus=run.gpus, batch=run.batch).exposed


@pytest.mark.parametrize("machine", ["rdma-25", "tcp-25", "tcp-40"])
@pytest.mark.parametrize(
    "wrong",
    [lambda m: {"between": m.between / 2}, lambda m: {"between": m.between * 2}, lambda m: {"overlap": 0.0}],
    ids=["half the bandwidth", "twice the bandwidth", "nothing hidden"],
)
def test_a_wrong_constant_of_the_exchange_is_far_off(machine, wrong, monkeypatch, capsys):
    own = scaling.MACHINES[machine]
    monkeypatch.setitem(scaling.MACHINES, machine, replace(own, **wrong(own)))
    assert {run.machine for run in scaling.misses(scaling.MACHINES)} == {machine}
    with pytest.raises(SystemExit) as error:
        scaling.main(["--check"])
    assert error.value.code == 1 and "TOO FAR OFF" in capsys.readouterr().out


def test_the_command_line(capsys):
    scaling.main(["--nodes", "8", "--gpus", "8", "--batch", "3200"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["nodes", "GPUs", "batch"] and [line.split()[0] for line in lines[1:5]] == list(
        "1248"
    )
    scaling.main(["--check"])
    assert "predicted" in capsys.readouterr().out
    for bad, named in ((["--batch", "100"], "multiple of 64"), (["--nodes", "0"], "--nodes must be positive")):
        with pytest.raises(SystemExit) as error:
            scaling.main(bad)
        assert error.value.code == 2 and named in capsys.readouterr().err
