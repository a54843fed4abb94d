"""The launchers of `train`: the same weights whoever starts the processes, and one voice under torchrun."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest

from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.workspace import Workspace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore")]

SMALL = {"steps": 100, "batch": 64, "eval_every": 20, "checkpoint_every": 4, "log_every": 10, "bn_images": 128}


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


def train_to_end(folder: Path, digits, launcher: str, workers: int, *more: str) -> str:
    space = Workspace(folder / f"{launcher}-{workers}")
    Path(space.data).mkdir(parents=True)
    (Path(space.data) / "digits").symlink_to(digits.path)
    done = run(space, launcher, workers, "--no-register", *more)
    assert done.returncode == 0, done.stdout
    return weights(space)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory, digits):
    """Return the weights that two workers of torchrun's come to without interruption."""
    return train_to_end(tmp_path_factory.mktemp("reference"), digits, "torchrun", 2)


def test_one_process_comes_to_the_same_weights_by_every_launcher(tmp_path, digits):
    launchers = ("local", "torchrun", "ray")
    assert len({train_to_end(tmp_path, digits, launcher, 1, "--set=steps=20") for launcher in launchers}) == 1


def test_two_processes_come_to_the_same_weights_by_torchrun_and_ray(tmp_path, digits, two_workers):
    assert train_to_end(tmp_path, digits, "ray", 2) == two_workers


def start(workspace: Workspace, launcher: str, workers: int) -> subprocess.Popen[str]:
    """Start a run, and wait for its first checkpoints."""
    process = subprocess.Popen(
        command(workspace, launcher, workers), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any(checkpoint_steps(folder) for folder in workspace.runs.glob("*/checkpoints")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(
    ("launcher", "workers", "sent", "to_all"),
    [
        ("torchrun", 2, signal.SIGKILL, True),
        pytest.param("torchrun", 2, signal.SIGTERM, False, marks=pytest.mark.soak),
        pytest.param("torchrun", 2, signal.SIGINT, False, marks=pytest.mark.soak),
        ("torchrun", 2, signal.SIGTERM, True),  # as Slurm does
        ("local", 1, signal.SIGINT, False),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_weights(
    workspace, tmp_path, digits, two_workers, launcher, workers, sent, to_all
):
    Tracking(workspace).experiment()  # MLflow's database is there: not its making is to be interrupted
    process = start(workspace, launcher, workers)
    # torchrun's processes are in groups of their own: a terminal's Ctrl-C reaches them through torchrun alone
    for one in [*psutil.Process(process.pid).children(recursive=True), process] if to_all else [process]:
        one.send_signal(sent)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and not list(workspace.runs.glob("*/result.json")), output
    if sent != signal.SIGKILL:
        assert output.count("stopped and saved in") == 1 and output.count("stopping: saving the state") == 1, output
    again = run(workspace, launcher, workers)
    assert again.returncode == 0 and "going on from step-" in again.stdout, again.stdout
    uninterrupted = two_workers if workers == 2 else train_to_end(tmp_path, digits, launcher, workers)
    assert weights(workspace) == uninterrupted


def test_rank_0_of_torchrun_s_processes_alone_speaks_tracks_and_registers(workspace, tmp_path):
    done = run(workspace, "torchrun", 2, "--json", str(tmp_path / "r.json"))
    assert done.returncode == 0, done.stdout
    for words in ("starting 2 worker(s) for 100 steps", "registered as digits-resnet8 version 1", "top-1 error"):
        assert done.stdout.count(words) == 1, done.stdout
    assert "Warning" not in done.stdout
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["workers"], result["version"]) == (2, "models:/digits-resnet8/1")
    client = mlflow.MlflowClient(f"sqlite:///{workspace.root}/mlflow/mlflow.db")
    (tracked,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert tracked.info.status == "FINISHED"
    assert len(client.get_metric_history(tracked.info.run_id, "train_loss")) == 10
    again = run(workspace, "torchrun", 2)
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
