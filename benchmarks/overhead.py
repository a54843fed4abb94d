"""What Prefect, Ray and tracking add to training: processor time beside the worker's, and seconds to the first step.

Run: python benchmarks/overhead.py [--seconds 120] [--clock ROUNDS]

It does what a user does: `resnet-pipeline up`, then a deployment of a training on the built-in digits, with one worker.
The kernel's count of every process's processor time (/proc) is read twice while it trains. That is time of a
processor, not of a clock, so other work on the machine does not change it much. The aim: at most 3 % of an hour, with
what they add to its start.

``--clock`` compares paces by the clock instead, on a machine that does nothing else: in each round a training in one
process while Prefect's and MLflow's servers are stopped (SIGSTOP), and the deployment's with them and Ray, once with
small steps (64 images) and once with large ones (1,024).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import psutil

from resnet_pipeline.parallel import cores
from resnet_pipeline.training.metrics_log import CheckpointEntry, SystemEntry, TrainEntry, read_metrics

PROGRAM = Path(sys.executable).with_name("resnet-pipeline")
PREFECT = Path(sys.executable).with_name("prefect")
AIM = 0.03  # of an hour
STEPS = 1_000_000  # more than there is time for: the run is cancelled
_WORKER = "RayTrainWorker"
_KINDS = (  # the first that a process's command has is what it counts as
    (_WORKER, "the training worker"),
    ("resnet_pipeline.services.flow_process", "the flow: driver, MLflow's sender, Prefect's engine"),
    ("prefect.engine", "the flow: driver, MLflow's sender, Prefect's engine"),
    ("ray", "Ray's other processes"),
    ("mlflow", "MLflow's server"),
    ("worker start", "Prefect's worker"),
    ("prefect", "Prefect's server"),
)


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def kind_of(process: psutil.Process) -> str:
    """Return what a process counts as."""
    command = " ".join(process.cmdline()) or process.name()
    return next((kind for text, kind in _KINDS if text in command), "other")


def processor_times(root: psutil.Process) -> dict[str, float]:
    """Return the processor seconds of all processes below one, by kind."""
    found: dict[str, float] = defaultdict(float)
    for process in root.children(recursive=True):
        try:
            times = process.cpu_times()
            found[kind_of(process)] += times.user + times.system
        except psutil.Error:
            continue
    return found


def last_step(metrics: Path) -> int:
    """Return the step of the last log point, 0 before there is one."""
    return max((line.step for line in read_metrics(metrics) if isinstance(line.entry, TrainEntry)), default=0)


def main() -> None:
    """Read the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="how long the processes are sampled")
    parser.add_argument("--clock", type=int, metavar="ROUNDS", help="compare by the clock, in so many rounds")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prefect, mlflow = free_port(), free_port()
        own = {k: v for k, v in os.environ.items() if not k.startswith(("RESNET_PIPELINE_", "PREFECT_", "MLFLOW_"))}
        env = {**own, "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api", "PREFECT_HOME": str(folder / "home")}
        ports = ["--prefect-port", str(prefect), "--mlflow-port", str(mlflow)]
        subprocess.run(
            [PROGRAM, "stage", "--source", "builtin:digits", "--name", "digits"], cwd=folder, env=own, check=True
        )
        up = subprocess.Popen([PROGRAM, "up", *ports], cwd=folder, env=own, stdout=subprocess.PIPE, text=True)
        try:
            assert up.stdout
            while "deployments" not in up.stdout.readline():  # `up` prints when all answer
                assert up.poll() is None, "`up` has ended"
            if settings.clock:
                print_paces(folder, up, env, settings.clock)
            else:
                print_shares(folder, up, env, settings.seconds)
        finally:
            up.terminate()
            up.wait(120)


SIZES = {64: 500, 1024: 40}
"""Images of a step, and how many steps are timed."""


def print_paces(folder: Path, up: subprocess.Popen[str], env: dict[str, str], rounds: int) -> None:
    """Train by both ways in turns; print each way's images/s and the ratio, with the smallest and largest."""
    servers = psutil.Process(up.pid).children(recursive=True)
    for batch, steps in SIZES.items():
        pairs = []
        for seed in range(rounds):
            sizes = {"batch": batch, "micro_batch": batch, "log_every": steps // 10, "eval_every": STEPS}
            changes = {**sizes, "bn_images": 64, "checkpoint_every": STEPS}
            fields = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
            options = ["--dataset", "digits", "--launcher", "local", "--no-register", "--steps", str(steps)]
            command = [PROGRAM, "train", "digits/resnet20", *options, "--seed", str(2 * seed), *fields]
            for server in servers:
                server.suspend()
            try:
                alone = pace(folder, env, command, batch)
            finally:  # a stopped server could not be ended
                for server in servers:
                    server.resume()
            parameters = {"steps": steps, "workers": 1, "seed": 2 * seed + 1, "overrides": changes, "registered": False}
            watched = ["digits-train/resnet20", "--params", json.dumps(parameters), "--watch"]
            whole = pace(folder, env, [PREFECT, "deployment", "run", *watched], batch)
            pairs.append((alone, whole))
            print(
                f"  {batch} images a step: alone {alone:.0f}, with Prefect, Ray, MLflow {whole:.0f} images/s",
                flush=True,
            )
        ratios = sorted(whole / alone for alone, whole in pairs)
        print(
            f"{batch} images a step: {statistics.median(ratios):.3f} of the pace of one process alone "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}, {rounds} rounds)"
        )


def pace(folder: Path, env: dict[str, str], command: list[str | Path], batch: int) -> float:
    """Run a training; return its images/s between its second log point, when all is warm, and its last."""
    before = set(folder.glob("work/runs/*"))
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    (run,) = set(folder.glob("work/runs/*")) - before
    points = [line for line in read_metrics(run / "metrics.jsonl") if isinstance(line.entry, TrainEntry)][1:]
    return batch * (points[-1].step - points[0].step) / (points[-1].time - points[0].time)


def print_shares(folder: Path, up: subprocess.Popen[str], env: dict[str, str], seconds: float) -> None:
    """Start the training, wait for its steps, sample, and print what each kind of process took."""
    parameters = {
        "steps": STEPS,
        "workers": 1,
        "overrides": {"log_every": 50, "eval_every": STEPS},
        "registered": False,
    }
    command = [PREFECT, "deployment", "run", "digits-train/resnet20", "--params", json.dumps(parameters)]
    without, known = start_alone(folder, env), set(folder.glob("work/runs/*/metrics.jsonl"))
    asked = time.time()
    subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True)
    metrics = None
    while metrics is None or last_step(metrics) < 100:
        time.sleep(1)
        metrics = next(iter(set(folder.glob("work/runs/*/metrics.jsonl")) - known), None)
    history = [line for line in read_metrics(metrics) if isinstance(line.entry, TrainEntry)]
    first = history[0].time - history[0].step * (history[1].time - history[0].time) / 50
    root, start, begun = psutil.Process(up.pid), time.monotonic(), last_step(metrics)
    before = processor_times(root)
    time.sleep(seconds)
    after, took, steps = processor_times(root), time.monotonic() - start, last_step(metrics) - begun
    shares = {kind: (spent - before.get(kind, 0.0)) / took for kind, spent in after.items()}
    training = shares.pop("the training worker")
    beside = sum(shares.values())
    print(f"{steps} steps in {took:.0f} s; {cores()} cores; processor seconds a second:")
    for kind, share in sorted([("the training worker", training), *shares.items()], key=lambda pair: -pair[1]):
        print(f"  {share:7.4f}  {kind}")
    kinds = (CheckpointEntry, SystemEntry, TrainEntry)
    lines = sum(isinstance(line.entry, kinds) for line in read_metrics(metrics))
    print(f"  {lines} lines of metrics, {metrics.stat().st_size / max(1, lines):.0f} bytes each")
    begin = first - asked
    part = (begin - without + beside / cores() * 3600) / 3600
    print(f"start: {begin:.1f} s from `prefect deployment run` to the first step, {without:.1f} s from `train` alone")
    found = "reached" if part <= AIM else "NOT REACHED"
    print(
        f"added to an hour: {begin - without:.1f} s of start, and {100 * beside / cores():.2f} % of the machine's "
        f"{cores()} cores beside the worker: {100 * part:.2f} %  (aim: at most {100 * AIM:.0f} %: {found})"
    )


def start_alone(folder: Path, env: dict[str, str]) -> float:
    """Return the seconds from the command to the first step of a training without Prefect and Ray."""
    asked, before = time.time(), set(folder.glob("work/runs/*"))
    command = [PROGRAM, "train", "digits/resnet20", "--dataset", "digits", "--launcher", "local", "--no-register"]
    steps = ["--steps", "20", "--set", "log_every=5"]
    subprocess.run([*command, *steps], cwd=folder, env=env, check=True, capture_output=True)
    (run,) = set(folder.glob("work/runs/*")) - before
    first, second, *_ = [line for line in read_metrics(run / "metrics.jsonl") if isinstance(line.entry, TrainEntry)]
    return first.time - first.step * (second.time - first.time) / (second.step - first.step) - asked


if __name__ == "__main__":
    main()
