"""The launchers of `train`: the same weights whoever starts the processes, and one voice under torchrun."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import mlflow
import psutil
import pytest

from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.workspace import Workspace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore")]

SMALL = {"steps": 60, "batch": 64, "eval_every": 30, "checkpoint_every": 4, "log_every": 10, "bn_images": 128}


def command(workspace: Workspace, launcher: str, workers: int, *more: str) -> list[str]:
    changes = [f"--set={key}={value}" for key, value in SMALL.items()]
    arguments = ["train", "digits/resnet8", "--dataset", "digits", "--root", str(workspace.root), *changes, *more]
    program = ["-m", "resnet_pipeline.cli", *arguments, "--launcher", launcher, "--workers", str(workers)]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(workers), "--rdzv-backend=c10d",
                "--rdzv-endpoint=127.0.0.1:0"]  # fmt: skip
    return [sys.executable, *(torchrun if launcher == "torchrun" else []), *program]


def run(workspace: Workspace, launcher: str, workers: int, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(workspace, launcher, workers, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def weights(workspace: Workspace) -> str:
    (result,) = workspace.runs.glob("*/result.json")
    return json.loads(result.read_text())["weights_sha256"]


@dataclass
class Finished:
    """A run that was not interrupted: where it lies, and what it printed."""

    workspace: Workspace
    output: str

    @property
    def weights(self) -> str:
        return weights(self.workspace)


def train_to_end(space: Workspace, launcher: str, workers: int, *more: str) -> Finished:
    done = run(space, launcher, workers, *more)
    assert done.returncode == 0, done.stdout
    return Finished(space, done.stdout)


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory, new_workspace):
    """Return a run of this process alone, without interruption."""
    space = new_workspace(tmp_path_factory.mktemp("one") / "work")
    return train_to_end(space, "local", 1, "--no-register")


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory, new_workspace):
    """Return a run of two of torchrun's processes, without interruption."""
    space = new_workspace(tmp_path_factory.mktemp("two") / "work")
    return train_to_end(space, "torchrun", 2, "--json", str(space.root / "result.json"))


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("ray", marks=pytest.mark.soak)])
def test_one_process_comes_to_the_same_weights_by_every_launcher(workspace, one_worker, launcher):
    assert train_to_end(workspace, launcher, 1, "--no-register").weights == one_worker.weights


def test_two_processes_come_to_the_same_weights_by_torchrun_and_ray(workspace, two_workers):
    assert train_to_end(workspace, "ray", 2, "--no-register").weights == two_workers.weights


def start(workspace: Workspace, launcher: str, workers: int) -> subprocess.Popen[str]:
    """Start a run, and wait for its first checkpoints."""
    line = command(workspace, launcher, workers, "--no-register")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not any(checkpoint_steps(folder) for folder in workspace.runs.glob("*/checkpoints")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(
    ("launcher", "workers", "sent", "to_all"),
    [
        pytest.param("torchrun", 2, signal.SIGKILL, True, marks=pytest.mark.soak),
        pytest.param("torchrun", 2, signal.SIGTERM, False, marks=pytest.mark.soak),
        pytest.param("torchrun", 2, signal.SIGINT, False, marks=pytest.mark.soak),
        ("torchrun", 2, signal.SIGTERM, True),  # as Slurm does
        ("local", 1, signal.SIGINT, False),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_weights(
    workspace, one_worker, two_workers, launcher, workers, sent, to_all
):
    process = start(workspace, launcher, workers)
    # torchrun's processes are in groups of their own: a terminal's Ctrl-C reaches them through torchrun alone
    for one in [*psutil.Process(process.pid).children(recursive=True), process] if to_all else [process]:
        one.send_signal(sent)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and not list(workspace.runs.glob("*/result.json")), output
    if sent != signal.SIGKILL:
        assert output.count("stopped and saved in") == 1 and output.count("stopping: saving the state") == 1, output
    again = run(workspace, launcher, workers, "--no-register")
    assert again.returncode == 0 and "resuming from step-" in again.stdout, again.stdout
    uninterrupted = two_workers if workers == 2 else one_worker
    assert weights(workspace) == uninterrupted.weights


def test_rank_0_of_torchrun_s_processes_alone_speaks_tracks_and_registers(two_workers):
    space, output = two_workers.workspace, two_workers.output
    for words in ("starting 2 worker(s) for 60 steps", "registered as digits-resnet8 version 1", "top-1 error"):
        assert output.count(words) == 1, output
    assert "Warning" not in output
    result = json.loads((space.root / "result.json").read_text())
    assert (result["workers"], result["version"]) == (2, "models:/digits-resnet8/1")
    client = mlflow.MlflowClient(f"sqlite:///{space.root}/mlflow/mlflow.db")
    (tracked,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert tracked.info.status == "FINISHED"
    assert len(client.get_metric_history(tracked.info.run_id, "train_loss")) == 6
    again = run(space, "torchrun", 2)
    assert again.returncode == 0 and again.stdout.count("finished before") == 1, again.stdout


def test_what_the_user_can_mend_is_one_line_from_all_processes(workspace):
    for more, words in ((("--set=optim.lr=1e20",), "not finite"), (("--dataset=gone",), "no dataset 'gone'")):
        done = run(workspace, "torchrun", 2, *more)
        said = [line for line in done.stdout.splitlines() if line.startswith("resnet-pipeline: ")]
        assert done.returncode != 0 and len(said) == 1 and words in said[0], done.stdout


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["torchrun", "2"], {}, "needs what torchrun tells its processes, and RANK, WORLD_SIZE, MASTER_ADDR"),
        (["local", "4"], {}, "--launcher local trains in this process alone, not with --workers 4"),
        (["torchrun", "3"], {"RANK": "0", "WORLD_SIZE": "2"}, "--workers 3, but torchrun started 2 process(es)"),
        (["torchrun", "2"], {"RANK": "0", "WORLD_SIZE": "2"}, "rank 0 can't meet the other processes at 127.0.0.1:"),
        (["torchrun", "2"], {"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number of at least 1"),
    ],
)
def test_a_launcher_that_can_t_work_is_one_line(workspace, arguments, variables, words):
    launcher, workers = arguments
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RESNET_PIPELINE_TIMEOUT": "2"}
    program = command(workspace, launcher, int(workers))
    alone = [sys.executable, *program[program.index("resnet_pipeline.cli") - 1 :]]
    done = subprocess.run(
        alone, env={**os.environ, **({**meeting, **variables} if variables else {})}, stderr=subprocess.PIPE, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("resnet-pipeline: ") and words in done.stderr
    assert not list(workspace.runs.glob("*"))
