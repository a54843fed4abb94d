"""The launchers of `train`: the same weights whoever starts the processes, and one voice under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import mlflow
import psutil
import pytest

from resnet_pipeline.cli import main
from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.training.metrics_log import last_step
from resnet_pipeline.workspace import Workspace
from tests.integration.conftest import free_port
from tests.launching import Started, launch_program

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400), pytest.mark.filterwarnings("ignore")]

SMALL = {"steps": 60, "batch": 32, "micro_batch": 16, "eval_every": 60, "checkpoint_every": 4, "log_every": 10}
SMALL["bn_images"] = 64


def arguments(workspace: Workspace, way: str, workers: int, *more: str) -> list[str]:
    """Return the arguments of `resnet-pipeline`: Slurm starts its processes by itself, with torchrun's variables."""
    changes = [f"--set={key}={value}" for key, value in SMALL.items()]
    start = ["train", "digits/resnet8", "--dataset", "digits", "--root", str(workspace.root), *changes, *more]
    return [*start, "--launcher", "torchrun" if way == "slurm" else way, "--workers", str(workers)]


class Launched:
    """The processes of one training: torchrun's started as users do, the others forked; Ray's workers are Ray's."""

    def __init__(self, workspace: Workspace, way: str, workers: int, *more: str) -> None:
        given = arguments(workspace, way, workers, *more)
        self._command: subprocess.Popen[str] | None = None
        self._forked: list[Started] = []
        if way != "torchrun":
            self._forked = launch_program(given, workers if way == "slurm" else None)
            return
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(workers),
                    "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "-m", "resnet_pipeline.cli"]  # fmt: skip
        self._command = subprocess.Popen(
            [*torchrun, *given], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    @property
    def ended(self) -> bool:
        return any(one.returncode is not None for one in self._forked) or (
            self._command is not None and self._command.poll() is not None
        )

    def send(self, number: int, *, to_all: bool) -> None:
        """Send a signal to all processes, or to the one that a terminal's Ctrl-C reaches."""
        # torchrun's processes are in groups of their own: a terminal's Ctrl-C reaches them through torchrun alone
        for forked in self._forked:
            forked.send_signal(number)
        if self._command is not None:
            first = psutil.Process(self._command.pid)
            for one in [*(first.children(recursive=True) if to_all else []), first]:
                one.send_signal(number)

    def finish(self, timeout: float = 300) -> tuple[int, str]:
        """Return the largest exit status and what was printed, when all have ended."""
        if self._command is not None:
            output = self._command.communicate(timeout=timeout)[0]
            return self._command.returncode, output
        output = "".join(one.errors(timeout) for one in self._forked)
        return max((one.returncode or 0 for one in self._forked), key=abs), output


def run(workspace: Workspace, way: str, workers: int, *more: str) -> tuple[int, str]:
    return Launched(workspace, way, workers, *more).finish()


def weights(workspace: Workspace) -> str:
    (result,) = workspace.runs.glob("*/result.json")
    return json.loads(result.read_text())["weights_sha256"]


def client_of(workspace: Workspace) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{workspace.root}/mlflow/mlflow.db")


def tracked(workspace: Workspace) -> mlflow.entities.Run:
    """Return what MLflow has of the one run."""
    client = client_of(workspace)
    (found,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return found


@dataclass
class Finished:
    """A run that was not interrupted: where it lies, and what it printed."""

    workspace: Workspace
    output: str

    @property
    def weights(self) -> str:
        return weights(self.workspace)


def train_to_end(space: Workspace, way: str, workers: int, *more: str) -> Finished:
    status, output = run(space, way, workers, *more)
    assert status == 0, output
    return Finished(space, output)


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


in_soak = pytest.mark.soak


@pytest.mark.parametrize("way", ["slurm", pytest.param("torchrun", marks=in_soak), pytest.param("ray", marks=in_soak)])
def test_one_process_comes_to_the_same_weights_by_every_launcher(workspace, one_worker, way):
    assert train_to_end(workspace, way, 1, "--no-register").weights == one_worker.weights


def test_two_processes_come_to_the_same_weights_by_torchrun_and_ray(workspace, two_workers):
    assert train_to_end(workspace, "ray", 2, "--no-register").weights == two_workers.weights


def start(workspace: Workspace, way: str, workers: int) -> Launched:
    """Start a run, and wait for its first checkpoints."""
    launched = Launched(workspace, way, workers, "--no-register")
    deadline = time.monotonic() + 120
    while not any(checkpoint_steps(folder) for folder in workspace.runs.glob("*/checkpoints")):
        assert not launched.ended and time.monotonic() < deadline
        time.sleep(0.01)
    return launched


@pytest.mark.parametrize(
    ("way", "workers", "signal_", "to_all"),
    [
        pytest.param("torchrun", 2, signal.SIGKILL, True, marks=in_soak),
        pytest.param("torchrun", 2, signal.SIGTERM, True, marks=in_soak),
        pytest.param("torchrun", 2, signal.SIGTERM, False, marks=in_soak),
        pytest.param("torchrun", 2, signal.SIGINT, False, marks=in_soak),
        ("slurm", 2, signal.SIGTERM, True),
        ("local", 1, signal.SIGINT, False),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_weights(
    workspace, one_worker, two_workers, way, workers, signal_, to_all
):
    launched = start(workspace, way, workers)
    launched.send(signal_, to_all=to_all)
    status, output = launched.finish(120)
    assert status != 0 and not list(workspace.runs.glob("*/result.json")), output
    if signal_ != signal.SIGKILL:
        assert output.count("stopped and saved in") == 1 and output.count("stopping: saving the state") == 1, output
        assert tracked(workspace).info.status == "KILLED"
    status, output = run(workspace, way, workers, "--no-register")
    assert status == 0 and "resuming from step-" in output, output
    assert tracked(workspace).info.status == "FINISHED"
    uninterrupted = two_workers if workers == 2 else one_worker
    assert weights(workspace) == uninterrupted.weights


@pytest.mark.soak
def test_sigterm_to_the_whole_group_leaves_ray_to_its_driver(workspace, one_worker):
    given = arguments(workspace, "ray", 1, "--no-register", "--set=checkpoint_every=1000")
    command = [sys.executable, "-m", "resnet_pipeline.cli", *given]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as driver:
        deadline = time.monotonic() + 120
        while not any(last_step(path) >= 10 for path in workspace.runs.glob("*/metrics.jsonl")):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        commands = [" ".join(child.cmdline()) for child in psutil.Process(driver.pid).children(recursive=True)]
        actors = {command.split()[0] for command in commands if command.startswith("ray::")}
        agents = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
        expected = {"ray::TrainController.run", "ray::SynchronizationActor", "ray::RayTrainWorker"}
        assert actors - agents == expected, "Ray has started more than this machine alone needs"
        idle = ("log_monitor.py", "monitor.py", "dashboard/dashboard.py")
        assert not [command for command in commands if any(name in command for name in idle)]
        os.killpg(driver.pid, signal.SIGTERM)
        output = driver.communicate(timeout=120)[0]
    assert driver.returncode == 130 and output.count("stopped and saved in") == 1, output
    (folder,) = workspace.runs.glob("*/checkpoints")
    assert len(checkpoint_steps(folder)) == 1


def test_rank_0_of_torchrun_s_processes_alone_speaks_tracks_and_registers(two_workers):
    space, output = two_workers.workspace, two_workers.output
    for words in ("starting 2 worker(s) for 60 steps", "registered as digits-resnet8 version 1", "top-1 error"):
        assert output.count(words) == 1, output
    assert "Warning" not in output
    result = json.loads((space.root / "result.json").read_text())
    assert (result["workers"], result["version"]) == (2, "models:/digits-resnet8/1")
    found = tracked(space)
    assert found.info.status == "FINISHED"
    assert len(client_of(space).get_metric_history(found.info.run_id, "train/loss")) == 6
    status, again = run(space, "slurm", 2)
    assert status == 0 and again.count("finished before") == 1, again


@pytest.mark.parametrize("way", ["slurm", pytest.param("torchrun", marks=in_soak)])
def test_what_the_user_can_mend_is_one_line_from_all_processes(workspace, way):
    for more, words in ((("--set=optim.lr=1e20",), "not finite"), (("--dataset=gone",), "no dataset 'gone'")):
        status, output = run(workspace, way, 2, *more)
        messages = [line for line in output.splitlines() if line.startswith("resnet-pipeline: ")]
        assert status != 0 and len(messages) == 1 and words in messages[0], output


@pytest.mark.parametrize(
    ("given", "variables", "words"),
    [
        (["torchrun", "2"], {}, "needs what torchrun tells its processes, and RANK, WORLD_SIZE, MASTER_ADDR"),
        (["local", "4"], {}, "--launcher local trains in this process alone, not with --workers 4"),
        (["torchrun", "3"], {"RANK": "0", "WORLD_SIZE": "2"}, "--workers 3, but torchrun started 2 process(es)"),
        (["torchrun", "2"], {"RANK": "0", "WORLD_SIZE": "2"}, "rank 0 can't meet the other processes at 127.0.0.1:"),
        (["torchrun", "2"], {"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number of at least 1"),
    ],
)
def test_a_launcher_that_can_t_work_is_one_line(workspace, given, variables, words, monkeypatch, capsys):
    launcher, workers = given
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "RESNET_PIPELINE_TIMEOUT": "2"}
    for name, value in ({**meeting, **variables} if variables else {}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["resnet-pipeline", *arguments(workspace, launcher, int(workers))])
    with pytest.raises(SystemExit) as ended:
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("resnet-pipeline: ") and words in line
    assert not list(workspace.runs.glob("*"))


def test_who_leaves_ray_has_no_thread_that_waits_for_its_answer(tmp_path):
    """Such a thread ended the demo by a segmentation fault, in two of six runs."""
    code = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "import ray\n"
        "from resnet_pipeline.adapters.ray import train\n"
        "from resnet_pipeline.workspace import Workspace\n"
        "train._SECONDS_FOR_LEAVING = 300\n"  # these workers have not even started when they are to leave
        "leave = ray.shutdown\n"
        "ray.shutdown = lambda: (print([thread.name for thread in threading.enumerate()]), leave())\n"
        "with train.standing_workers(Workspace(Path(sys.argv[1])), 1):\n"
        "    pass\n"
    )
    shown = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True).stdout
    assert "MainThread" in shown and "ray-train" not in shown
