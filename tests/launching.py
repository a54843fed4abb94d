"""The training loop, or the program, in plain processes that form a group, as torchrun and Slurm start them.

They are forked from a process that has imported PyTorch and MLflow: to import them anew takes each ten seconds.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.training.run_directory import RunDirectory

WORKER = """
import contextlib, sys, time
from pathlib import Path
import torch
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.training.context import torchrun_context
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
torch.set_num_threads(1)
with torchrun_context() as context:
    train(RunDirectory.open(Path(sys.argv[1])), Dataset.open(Path(sys.argv[2])), context)
def threads():
    # those of a group: a joined one may be seen for a moment more, and go while it is looked at
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            yield (task / "comm").read_text().strip()

deadline = time.monotonic() + 10
while left := [name for name in threads() if "gloo" in name]:
    assert time.monotonic() < deadline, f"threads of a group that is over may abort the process at Python's end: {left}"
    time.sleep(0.05)
"""

PROGRAM = "import os, sys; os.chdir(sys.argv.pop(1)); from resnet_pipeline.cli import main; main()"

_processes = multiprocessing.get_context("forkserver")


@functools.cache
def _import_once() -> None:
    """Let processes be forked from one that has imported PyTorch, in place of the one that staging forks from."""
    forkserver._forkserver._stop()
    _processes.set_forkserver_preload(
        [
            "torch",
            "torch._dynamo",
            "torch.distributed",
            "nvidia.dali.fn",
            "resnet_pipeline.jobs.register",
            "resnet_pipeline.cli.main",
        ]
    )


def _run(script: str, arguments: Sequence[str], environment: str, output: str, errors: str) -> None:
    """Run a script as ``python -c`` does, in a process that was forked for it."""
    os.environ.clear()
    os.environ.update(json.loads(environment))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream, file in ((1, output), (2, errors)):
        if file:
            os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), stream)
    sys.argv = ["-c", *arguments]
    exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})


class Started:
    """A process that runs a script; the parts of subprocess.Popen that the tests use."""

    def __init__(
        self, script: str, arguments: Sequence[str], environment: Mapping[str, str], *, output: bool = False
    ) -> None:
        """``output``: what it prints goes to where its errors go."""
        _import_once()
        handle, name = tempfile.mkstemp(prefix="stderr-")
        os.close(handle)
        self._errors = Path(name)
        options = (script, list(arguments), json.dumps(dict(environment)), name if output else "", name)
        self._process = _processes.Process(target=_run, args=options)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Return the exit status when it has ended; TimeoutExpired if it does not in time."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("the worker", timeout, stderr=self._errors.read_bytes())
        if self._process.exitcode:
            print(self._errors.read_text(), file=sys.stderr)  # pytest shows it with a failure
        return self._process.exitcode

    def errors(self, timeout: float) -> str:
        """Return what it has written to stderr, and its output if that goes there, when it has ended."""
        self.wait(timeout)
        return self._errors.read_text()

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def meeting(world: int) -> list[dict[str, str]]:
    """Return what the environment of each of ``world`` processes says, for them to find one another."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    shared["LOCAL_WORLD_SIZE"] = str(world)
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def launch(
    run: RunDirectory, dataset: Dataset, world: int, *, script: str = WORKER, arguments: Sequence[str] = ()
) -> list[Started]:
    """Start ``world`` processes that train the run together."""
    given = [str(run.path), str(dataset.path), *arguments]
    return [Started(script, given, environment) for environment in meeting(world)]


def launch_program(
    arguments: Sequence[str],
    world: int | None = None,
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> list[Started]:
    """Start ``resnet-pipeline ARGUMENTS`` in ``world`` processes that know of one another, or in one that is alone.

    That one may have another folder and environment than this process.
    """
    environments = [environment or os.environ] if world is None else meeting(world)
    given = [str(cwd or Path.cwd()), *arguments]
    return [Started(PROGRAM, given, each, output=True) for each in environments]
