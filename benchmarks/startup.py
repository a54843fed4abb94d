"""How long things take to start, stage by stage, against the parts that no program on these libraries can leave out.

Run: python benchmarks/startup.py [--rounds 3] [--only parts commands train killed up demo]

Parts: importing PyTorch, starting Ray, an empty training on Ray Train with two workers, a new database of Prefect's
server, and the demo's own steps in two plain processes. Then what a user types: `--help`, `recipes`, `doctor`, `train`
to its first step, a worker killed to the first step beyond, `up` until all answer, `prefect deployment run` to the
first step, the demo, the demo again. All in
turns, each in a process of its own; the table gives median, least and most seconds, and the ratio to the parts that
each needs. `--check` fails when a ratio, or the seconds where they have an aim, are above it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from resnet_pipeline.training.metrics_log import TrainEntry, read_metrics

PREFECT = Path(sys.executable).with_name("prefect")
PROGRAM = Path(sys.executable).with_name("resnet-pipeline")
RAY = "import ray; ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False); ray.shutdown()"
RAY_TRAIN = """
import os, tempfile
import ray, torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False)
def work():
    pass
with tempfile.TemporaryDirectory() as folder:
    TorchTrainer(work, scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(storage_path=folder)).fit()
ray.shutdown()
"""
BARE = """
import sys
from pathlib import Path
import torch
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.context import torchrun_context
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
torch.set_num_threads(1)
dataset = Dataset.open(Path(sys.argv[1]))
with torchrun_context() as context:
    for network in ("resnet8", "resnet14", "resnet20"):
        train(RunDirectory.create(Path(sys.argv[2]), get_recipe("digits/" + network), dataset.facts), dataset, context)
"""


@dataclass(frozen=True)
class Stage:
    """Something to time: ``run`` returns its seconds; ``needs`` are the parts that it can't do without.

    ``aim`` is the most times as long as these that it may take, ``at_most`` the most seconds on two quiet cores.
    """

    name: str
    run: Callable[[Path], float]
    needs: Sequence[str] = ()
    aim: float | None = None
    at_most: float | None = None


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment as a new user has it, without settings of the pipeline's and services'."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("RESNET_PIPELINE_", "PREFECT_", "MLFLOW_"))}
    return {**own, "RAY_USAGE_STATS_ENABLED": "0", **more}


def seconds(command: Sequence[str], folder: Path, **more: str) -> float:
    """Run a command in a folder and return its wall seconds."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment(**more), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def code(text: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-c", text, *arguments]


def staged(folder: Path) -> Path:
    """Stage the digits once below a folder; return the dataset's."""
    dataset = folder / "work" / "datasets" / "digits"
    if not dataset.exists():
        seconds([str(PROGRAM), "stage", "--source", "builtin:digits", "--name", "digits", "--quiet"], folder)
    return dataset


def bare_steps(folder: Path) -> float:
    """Train the demo's networks by the same loop in two plain processes, without Ray, Prefect or MLflow."""
    dataset = staged(folder)
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    start = time.perf_counter()
    processes = [
        subprocess.Popen(
            code(BARE, str(dataset), str(folder / "runs")),
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
        )
        for rank in (0, 1)
    ]
    if any(process.wait() for process in processes):
        sys.exit("the bare steps failed")
    return time.perf_counter() - start


def prefect_server(folder: Path) -> float:
    """Start Prefect's server on a new database and return the seconds until it answers."""
    from resnet_pipeline.services.temporary_prefect import TemporaryPrefect
    from resnet_pipeline.workspace import Workspace

    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    start = time.perf_counter()
    server = TemporaryPrefect(Workspace(folder / "work"))
    server.wait()
    taken = time.perf_counter() - start
    server.stop()
    del os.environ["PREFECT_API_URL"], os.environ["PREFECT_HOME"]
    return taken


def first_step(folder: Path) -> float:
    """Type `train` and return the seconds until its first step is in the metrics."""
    staged(folder)
    start = time.time()
    options = ["--workers", "2", "--steps", "2", "--set", "log_every=1", "--no-register", "--quiet"]
    seconds([str(PROGRAM), "train", "digits/resnet8", "--dataset", "digits", *options], folder)
    return time_of_first_step(folder) - start


def time_of_first_step(folder: Path) -> float:
    """Return when the first step of the one run below a folder was logged."""
    (metrics,) = (folder / "work" / "runs").glob("*/metrics.jsonl")
    return next(line.time for line in read_metrics(metrics) if isinstance(line.entry, TrainEntry))


def step_after_kill(folder: Path) -> float:
    """Kill one of two workers in mid-training; return the seconds until a step beyond the last is in the metrics."""
    staged(folder)
    options = ["--workers", "2", "--steps", "100000", "--no-register", "--quiet"]
    options += ["--set", "log_every=1", "--set", "checkpoint_every=10"]
    command = [str(PROGRAM), "train", "digits/resnet8", "--dataset", "digits", *options]
    others = set(workers())
    train = subprocess.Popen(command, cwd=folder, env=environment(), stderr=subprocess.DEVNULL)
    try:
        last = wait_for_step(folder, train, beyond=25)[0]
        next(worker for worker in workers() if worker not in others).kill()
        start = time.time()
        while True:  # what the last worker still had under way is no step of its successor's
            last, at = wait_for_step(folder, train, beyond=last)
            if at > start + 1:
                return at - start
    finally:
        train.send_signal(signal.SIGINT)
        train.wait(120)


def wait_for_step(folder: Path, train: subprocess.Popen[bytes], beyond: int) -> tuple[int, float]:
    """Return the first step after ``beyond`` in the metrics of the one run below a folder, and when it was logged."""
    while True:
        for metrics in (folder / "work" / "runs").glob("*/metrics.jsonl"):
            for line in read_metrics(metrics):
                if isinstance(line.entry, TrainEntry) and line.step > beyond:
                    return line.step, line.time
        if train.poll() is not None:
            sys.exit("`train` has ended")
        time.sleep(0.1)


def workers() -> list[psutil.Process]:
    """Return this machine's training workers."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if "ray::RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@contextmanager
def services(folder: Path) -> Iterator[tuple[float, str]]:
    """Run `up` on ports of its own; yield the seconds until all answer, and the address of Prefect's API."""
    prefect, mlflow = free_port(), free_port()
    command = [str(PROGRAM), "up", "--prefect-port", str(prefect), "--mlflow-port", str(mlflow)]
    start = time.perf_counter()
    up = subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert up.stdout
        while "deployments" not in up.stdout.readline():  # the first of the lines that it prints then
            if up.poll() is not None:
                sys.exit("`up` has ended")
        yield time.perf_counter() - start, f"http://127.0.0.1:{prefect}/api"
    finally:
        up.terminate()
        up.wait(120)


def up_answers(folder: Path) -> float:
    with services(folder) as (taken, _):
        return taken


def first_step_of_deployment(folder: Path) -> float:
    """Type `prefect deployment run` where `up` runs; return the seconds until its first step is in the metrics."""
    staged(folder)
    with services(folder) as (_, address):
        start = time.time()
        parameters = {"steps": 2, "workers": 2, "overrides": {"log_every": 1}, "registered": False}
        command = [str(PREFECT), "deployment", "run", "digits-train/resnet8", "--params", json.dumps(parameters)]
        seconds([*command, "--watch"], folder, PREFECT_API_URL=address, PREFECT_HOME=str(folder / "home"))
        return time_of_first_step(folder) - start


def demo(folder: Path) -> float:
    return seconds([str(PROGRAM), "demo"], folder)


PARTS = [
    Stage("import PyTorch", lambda folder: seconds(code("import torch"), folder)),
    Stage("start Ray", lambda folder: seconds(code(RAY), folder)),
    Stage("empty training on Ray Train", lambda folder: seconds(code(RAY_TRAIN), folder)),
    Stage("Prefect's server, new database", prefect_server),
    Stage("the demo's steps, plain processes", bare_steps),
]
COMMANDS = [
    Stage("--help", lambda folder: seconds([str(PROGRAM), "--help"], folder), ["import PyTorch"], 1.0, 1.0),
    Stage("recipes", lambda folder: seconds([str(PROGRAM), "recipes"], folder), ["import PyTorch"], 4.0, 1.0),
    Stage("doctor", lambda folder: seconds([str(PROGRAM), "doctor"], folder), ["import PyTorch"], 1.0, 1.0),
]
TRAIN = [
    Stage("train: first step", first_step, ["import PyTorch", "empty training on Ray Train"], 1.5, 12.0),
]
KILLED = [
    Stage("worker killed: next new step", step_after_kill, ["import PyTorch"], 3.0, 10.0),
]
UP = [
    Stage("up: all answer", up_answers, ["Prefect's server, new database"], 2.0, 20.0),
    Stage("deployment run: first step", first_step_of_deployment, ["empty training on Ray Train"], 2.0, 20.0),
]
DEMO = [
    Stage("demo", demo, ["empty training on Ray Train", "the demo's steps, plain processes"], 2.0),
    Stage("demo again", demo, ["import PyTorch"], 10.0, 10.0),
]
GROUPS = {"parts": PARTS, "commands": COMMANDS, "train": TRAIN, "killed": KILLED, "up": UP, "demo": DEMO}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*GROUPS], default=[*GROUPS])
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stages = [*PARTS, *(stage for name in arguments.only if name != "parts" for stage in GROUPS[name])]
    found: dict[str, list[float]] = {stage.name: [] for stage in stages}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory(prefix="benchmark-startup-") as temporary:
            for stage in stages:
                # the demo is repeated where it ran, everything else starts with a folder of its own
                folder = Path(temporary) / stage.name.removesuffix(" again").replace(" ", "-").replace("/", "-")
                folder.mkdir(exist_ok=True)
                found[stage.name].append(stage.run(folder))
    print(f"{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {arguments.rounds} rounds in turns")
    print(f"{'':36}{'median s':>10}{'least':>8}{'most':>8}{'/ parts':>9}{'aim':>6}{'aim, s':>8}")
    missed = []
    for stage in stages:
        took = found[stage.name]
        line = f"{stage.name:36}{statistics.median(took):10.2f}{min(took):8.2f}{max(took):8.2f}"
        if stage.needs:
            ratios = [t / sum(found[part][i] for part in stage.needs) for i, t in enumerate(took)]
            line += f"{statistics.median(ratios):9.2f}{stage.aim:6.1f}" + (
                f"{stage.at_most:8.0f}" if stage.at_most else ""
            )
            if statistics.median(ratios) > (stage.aim or math.inf) or statistics.median(took) > (
                stage.at_most or math.inf
            ):
                missed.append(stage.name)
        print(line)
    if arguments.check and missed:
        sys.exit(f"above their aim: {', '.join(missed)}")


if __name__ == "__main__":
    main()
