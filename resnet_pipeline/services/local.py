"""Prefect's server and worker and MLflow's server on this machine: start them, and stop exactly those."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from resnet_pipeline.adapters.mlflow.client import make_database
from resnet_pipeline.adapters.mlflow.descriptions import experiments_page
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import read_json, write_json
from resnet_pipeline.records import RecordError, plain, read_record
from resnet_pipeline.services.deployments import POOL, deploy, deployments
from resnet_pipeline.services.prefect_api import SECONDS_TO_START, answers
from resnet_pipeline.settings import ROOT_VARIABLE, for_children
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_SECONDS_TO_SAVE = 600  # gigabytes to a network drive; another Ctrl-C ends the wait
_PROCESSES = ("prefect-server", "mlflow-server", "prefect-worker")  # in the order of their start

_PACES = {
    # how soon a run that is asked for starts: every 2 s would cost 1.6 % of a core, every 5 s 0.6 %
    "PREFECT_WORKER_QUERY_SECONDS": "5",
    # what one person on one machine does not notice; at Prefect's own 5 s to 20 s the rounds cost 0.5 % of a core
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_LOOP_SECONDS": "30",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "30",
}
"""Prefect's settings that trade promptness for processor time, which is the training's (benchmarks/overhead.py)."""


@contextlib.contextmanager
def up(workspace: Workspace, *, prefect_port: int, mlflow_port: int, detach: bool) -> Iterator[str]:
    """Start the servers and the worker, wait until each answers, and register the deployments.

    Yields a text on what is there and how to use it; then stays until Ctrl-C, unless it is to ``detach``. Raises
    UserError if a port is in use, or a process ends or does not answer; what was started is then stopped.

    Example: ``with up(Workspace.of(), prefect_port=4200, mlflow_port=5000, detach=True) as text: print(text)``
    """
    # refuse before anything is started
    if _alive(workspace):
        raise UserError(f"already up, from {workspace.services}; stop it first with: resnet-pipeline down")
    for name, port, option in (("Prefect", prefect_port, "--prefect-port"), ("MLflow", mlflow_port, "--mlflow-port")):
        _check_port(name, port, option)
    # addresses, folders and signals
    api, mlflow = f"http://127.0.0.1:{prefect_port}/api", f"http://127.0.0.1:{mlflow_port}"
    environment = _environment(workspace, api, mlflow)
    for folder in (workspace.services, workspace.prefect, workspace.mlflow):
        folder.mkdir(parents=True, exist_ok=True)
    up_and_running = False
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a background job of a script starts with it ignored
        signal.signal(number, _interrupt)
    _stopping(workspace).unlink(missing_ok=True)  # of a `down` that was killed
    try:
        # both servers at the same time, then what needs them
        _log.info("starting Prefect and MLflow (logs in %s)", workspace.services)
        _start(workspace, "prefect-server", environment, "-m", "prefect", "server", "start", "--host", "127.0.0.1",
               "--port", str(prefect_port))  # fmt: skip
        make_database(workspace.mlflow / "mlflow.db")
        _start(workspace, "mlflow-server", environment, "-m", "mlflow", "server", "--host", "127.0.0.1",
               "--port", str(mlflow_port), "--workers", "1", "--backend-store-uri",
               f"sqlite:///{workspace.mlflow / 'mlflow.db'}",
               # clients write artifacts themselves, so that `demo` and `train` can use the store without a server
               "--no-serve-artifacts", "--default-artifact-root",
               (workspace.mlflow / "artifacts").as_uri())  # fmt: skip
        with _environ(environment):
            deployments()  # imports the flows while the servers start
        # each answers before the next step uses it
        _wait(workspace, "mlflow-server", f"{mlflow}/health")
        _log.info("MLflow answers at %s", mlflow)
        _wait(workspace, "prefect-server", f"{api}/health")
        _log.info("Prefect answers at %s; registering deployments", api.removesuffix("/api"))
        with _environ(environment):
            count = deploy(POOL, trainings_at_once=1)  # two would share the GPUs and the memory
        _start(workspace, "prefect-worker", environment, "-m", "prefect", "worker", "start", "--pool", POOL,
               "--type", "process", "--name", "this-machine")  # fmt: skip
        _wait_for_worker(workspace, api)
        yield _what_next(workspace, api, mlflow, count)
        if not detach:
            up_and_running = True
            _log.info("Ctrl-C stops all three.")
            _stay(workspace)
    except BaseException as error:
        down(workspace)
        if not (up_and_running and isinstance(error, KeyboardInterrupt)):
            raise


def down(workspace: Workspace) -> None:
    """Stop the processes that `up` started, with their children, and no others.

    Example: ``down(Workspace.of())``
    """
    alive = _alive(workspace)
    if not alive:
        _log.info("nothing is up")
        return
    _stopping(workspace).touch()
    # the worker first, and before it the flow runs: the worker would end them at once, without a checkpoint
    for name, process in reversed(alive):
        if name == "prefect-worker" and (flows := process.children()):
            _log.info("%d flow run(s) saving and stopping", len(flows))
            for flow in flows:
                _signal(flow, signal.SIGINT)
            _left_after(_SECONDS_TO_SAVE, flows)
        tree = [process, *_children(process)]
        _signal(process, signal.SIGINT if name == "prefect-worker" else signal.SIGTERM)
        left = _left_after(15, tree)
        for survivor in left:
            _signal(survivor, signal.SIGKILL)
        _left_after(5, left)
        _log.info("stopped %s", name)
    _pid_file(workspace).unlink(missing_ok=True)
    _stopping(workspace).unlink(missing_ok=True)


def _environment(workspace: Workspace, api: str, mlflow: str) -> dict[str, str]:
    return {
        **_PACES,
        **os.environ,
        **for_children(),
        ROOT_VARIABLE: str(workspace.root),
        # the deployments' command is `python`
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
        "PREFECT_HOME": str(workspace.prefect),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_TRACKING_URI": mlflow,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
    }


@contextlib.contextmanager
def _environ(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _check_port(name: str, port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(f"port {port} for {name} is in use; free it or choose another with {option}") from None
        except OverflowError:
            raise UserError(f"{option} must be between 1 and 65535, not {port}") from None


def _start(workspace: Workspace, name: str, environment: dict[str, str], *arguments: str) -> None:
    log = (workspace.services / f"{name}.log").open("w")
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        cwd=workspace.services,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C in the terminal reaches `up`, which stops them in order
    )
    started = psutil.Process(process.pid).create_time()
    entries = {**_entries(workspace), name: ServerProcess(pid=process.pid, started=started)}
    write_json(_pid_file(workspace), plain(entries))


def _pid_file(workspace: Workspace) -> Path:
    return workspace.services / "processes.json"


def _stopping(workspace: Workspace) -> Path:
    """Return the file that says, while it is there, that `down` is at work: so an `up` elsewhere ends in peace."""
    return workspace.services / "stopping"


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """A process of `up`: its id, and its start in Unix time, which tells it from a later one of that id."""

    pid: int
    started: float


def _entries(workspace: Workspace) -> dict[str, ServerProcess]:
    """Return the processes that `up` has started, by name; none if the note of them is damaged."""
    try:
        entries = read_json(_pid_file(workspace))
        found = {name: read_record(ServerProcess, entry) for name, entry in entries.items() if name in _PROCESSES}
    except (UserError, RecordError):
        return {}
    return {name: entry for name, entry in found.items() if 0 < entry.pid < 2**31}


def _alive(workspace: Workspace) -> list[tuple[str, psutil.Process]]:
    """Return the processes of `up` that live; a process id that was given to another process since does not count."""
    found = []
    for name, entry in sorted(_entries(workspace).items(), key=lambda item: _PROCESSES.index(item[0])):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(entry.pid)
            if abs(process.create_time() - entry.started) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                found.append((name, process))
    return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _left_after(seconds: float, processes: list[psutil.Process]) -> list[psutil.Process]:
    """Wait until all have ended; return those that have not after so long, or on another Ctrl-C, which ends the wait.

    A zombie has ended. It is gone only when its parent asks how, which in a container may be never.
    """
    deadline, left = time.monotonic() + seconds, processes
    try:
        while True:
            _, there = psutil.wait_procs(processes, timeout=0)
            left = [process for process in there if not _is_zombie(process)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)
    except KeyboardInterrupt:  # the rest is still to be stopped: nothing may be left behind
        _log.warning("not waiting any longer")
        return left


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _wait(workspace: Workspace, name: str, url: str) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if name not in dict(_alive(workspace)):
            raise UserError(f"{name} ended at start; its log: {workspace.services / name}.log")
        if answers(url):
            return
        time.sleep(0.3)
    raise UserError(
        f"{name} does not answer at {url} after {SECONDS_TO_START} s; its log: {workspace.services / name}.log"
    )


def _wait_for_worker(workspace: Workspace, api: str) -> None:
    url = f"{api}/work_pools/{POOL}/workers/filter"
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        if "prefect-worker" not in dict(_alive(workspace)):
            raise UserError(f"the worker ended at start; its log: {workspace.services / 'prefect-worker.log'}")
        request = urllib.request.Request(url, data=b"{}", headers={"Content-Type": "application/json"})
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5) as answer:
            if any(worker["status"] == "ONLINE" for worker in json.loads(answer.read())):
                return
        time.sleep(0.3)
    raise UserError(
        f"the worker is not online after {SECONDS_TO_START} s; its log: {workspace.services / 'prefect-worker.log'}"
    )


def _what_next(workspace: Workspace, api: str, mlflow: str, deployments: int) -> str:
    binaries = Path(sys.executable).parent
    return f"""
Prefect  {api.removesuffix("/api")}   {deployments} deployments in the work pool '{POOL}', one worker online
MLflow   {experiments_page(mlflow)}

In another terminal:
  export PATH={binaries}:$PATH
  export PREFECT_API_URL={api} MLFLOW_TRACKING_URI={mlflow} {ROOT_VARIABLE}={workspace.root}
  prefect deployment ls
  prefect deployment run stage-dataset/digits --watch
  prefect deployment run digits-train/resnet20 --watch
  resnet-pipeline stage --source FOLDER-OR-ARCHIVE --name ilsvrc2012
  prefect deployment run imagenet-train/resnet152 --param dataset=ilsvrc2012 --watch
"""


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _stay(workspace: Workspace) -> None:
    """Return when all were stopped from elsewhere; KeyboardInterrupt on Ctrl-C or SIGTERM, UserError if one ended."""
    started = {name for name, _ in _alive(workspace)}
    while left := {name for name, _ in _alive(workspace)}:
        if started - left and not _stopping(workspace).exists():
            name = sorted(started - left)[0]
            raise UserError(f"{name} ended by itself; its log: {workspace.services / name}.log")
        time.sleep(1)
