"""A Ray cluster, here or elsewhere: how many workers it has room for, and CPUs for each; Ray chooses the nodes."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_pipeline.errors import NoClusterError, UserError
from resnet_pipeline.parallel import cores, start_thread
from resnet_pipeline.settings import cleaned, for_children, settings, surroundings, variable, without_secrets
from resnet_pipeline.training.distributed import collective_timeout

_log = logging.getLogger(__name__)

_SECONDS_TO_ANSWER = 8  # of each address that the name has
_SECONDS_IN_ALL = 16  # with the search for the name
_SETTINGS = bytes(3) + b"\x04" + bytes(5)  # a frame of HTTP/2: no bytes, of type 4 (RFC 9113)
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS
_LONGEST_SOCKET_PATH = 107
_ON_THIS_MACHINE = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one more process, and nobody takes this machine away
    "RAY_enable_metrics_collection": "0",  # for Prometheus: 1 % of a core, and without a dashboard nobody asks
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # idle workers, which no actor with an environment of its own takes
}
"""Ray's settings of a cluster that is this machine alone."""
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the cluster has, whether free or not: (CPUs, GPUs) of each node.

    If it is ``growing``, that is what it may have: an autoscaler brings nodes when work asks for them.
    """

    nodes: tuple[tuple[int, int], ...]
    growing: bool = False

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(gpus for _, gpus in self.nodes)

    def most_workers(self, cpus: int = 1) -> int:
        """Return how many workers fit at once: each on one node, with ``cpus`` CPUs, and a GPU if there are any."""
        return sum(min(c // cpus, g) if self.gpus else c // cpus for c, g in self.nodes)

    def cpus_per_worker(self, workers: int) -> int:
        """Return the most CPUs that each of ``workers`` workers can have at once, at least 1.

        Of nodes that come when asked for, a worker has its GPU's share: none is to come for its CPUs alone.
        """
        shares = self.growing and self.gpus > 0
        most = max((cpus // (gpus if shares else 1) for cpus, gpus in self.nodes if gpus or not shares), default=1)
        counts = range(most, 1, -1)
        return next((cpus for cpus in counts if self.most_workers(cpus) >= workers), 1)


@contextlib.contextmanager
def ray_cluster() -> Iterator[Resources]:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine; leave it, or stop it, at the end.

    Inside another ``ray_cluster()`` the same connection serves. A local cluster offers at least two CPUs, so that two
    workers run on any machine.

    Example: ``with ray_cluster() as resources: resources.most_workers()``
    """
    os.environ.update(for_children())  # Ray's workers run in another folder
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon the end of a fit is noticed
    # a worker that does not answer Ray is as lost as one that does not answer the others
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(collective_timeout().total_seconds()))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the behaviour to come; silences its warning
    import ray

    own, address = not ray.is_initialized(), surroundings().ray_address  # an outer one may have joined or started it
    with contextlib.nullcontext() if address or not own else _on_this_machine():
        if own:
            _join(address)
        try:
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            here = Resources(nodes=tuple((int(n.get("CPU", 0)), int(n.get("GPU", 0))) for n in alive))
            yield _grown(here) if address else here
        finally:
            if own:
                _dashboards.clear()
                ray.shutdown()


def _grown(here: Resources) -> Resources:
    """Return what RESNET_PIPELINE_RAY_NODES says that the cluster may have, else what it has.

    Ray does not tell a driver the limits of its autoscaler (neither KubeRay's nor the launcher's are in its state).
    """
    text = settings().ray_nodes
    if text is None:
        return here
    groups = [tuple(map(int, group.split("x"))) for group in text.split(",")]
    grown = Resources(nodes=tuple((cpus, gpus) for count, cpus, gpus in groups for _ in range(count)), growing=True)
    if here.most_workers() < grown.most_workers():
        _log.info(
            "the Ray cluster has room for %d workers now, and by its autoscaler for %d; it is waited for",
            here.most_workers(),
            grown.most_workers(),
        )
    return grown


def _join(address: str | None) -> None:
    """Join the cluster at an address, or start one on this machine."""
    import ray

    # "local" explicitly: without it Ray attaches to whatever an old cluster left as the current address
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        _check_answers(address)
    else:
        _check_socket_paths()
        options |= {"num_cpus": max(2, cores()), "include_dashboard": False}
    try:
        with _apart(), _handlers_kept(), contextlib.nullcontext() if address else _with_little():
            _dashboards.append(ray.init(**options).dashboard_url or "")
    except (OSError, ValueError, RuntimeError) as error:
        reason = cleaned((str(error).splitlines() or [type(error).__name__])[0])
        if not address:
            raise UserError(f"Ray can't be started on this machine: {reason}") from None
        if reason.startswith("Version mismatch"):  # Ray says the versions in the lines that follow
            versions = " ".join(str(error).removeprefix("Version mismatch:").split())
            raise UserError(
                f"RAY_ADDRESS={without_secrets(address)} has other versions; install the same there and here. "
                f"{versions}"
            ) from None
        raise NoClusterError(f"no Ray cluster at RAY_ADDRESS={without_secrets(address)}: {reason}") from None


@contextlib.contextmanager
def _on_this_machine() -> Iterator[None]:
    """Inside, Ray has the settings of a cluster that is this machine alone; the next cluster may be another one."""
    set_here = {name: value for name, value in _ON_THIS_MACHINE.items() if name not in os.environ}
    os.environ.update(set_here)
    try:
        yield
    finally:
        for name in set_here:
            os.environ.pop(name, None)


_dashboards: list[str] = []
"""Of the cluster that this process has joined; empty if it has none."""


def dashboard() -> str | None:
    """Return the address of the joined cluster's dashboard; None without a cluster, or if it has none.

    Example: ``with ray_cluster(): print(dashboard())``
    """
    return f"http://{_dashboards[0]}" if _dashboards and _dashboards[0] else None


_starting = threading.local()
"""Whether this thread starts Ray's processes now."""


def _leave_group() -> None:
    if getattr(_starting, "apart", False):
        os.setsid()


# Ray offers no way to start its processes in a session of their own. It starts them with a function to call before
# exec, and then Python calls in the child what is registered here.
os.register_at_fork(after_in_child=_leave_group)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Inside, this thread's subprocesses get sessions of their own.

    Whoever stops a job often signals its whole process group (`timeout`, Slurm, Prefect's worker). A Ray that got that
    would be gone at once, and with it the workers that are to save. It ends when this process does.
    """
    _starting.apart = True
    try:
        yield
    finally:
        _starting.apart = False


_IDLE = ("start_log_monitor", "start_monitor", "start_api_server")
"""Methods by which Ray's node starts a process that has nothing to do in a cluster that is this machine alone.

The log monitor looks ten times a second for lines that the driver does not want (``log_to_driver=False``), the monitor
is the autoscaler's, and the API server is the dashboard's, which runs with ``include_dashboard=False`` too. Together
they take three seconds of a core to start. Ray has no setting for any of them.
"""


@contextlib.contextmanager
def _with_little() -> Iterator[None]:
    """Inside, Ray starts none of the processes that are `_IDLE` here."""
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in _IDLE}
    for name in _IDLE:
        setattr(Node, name, lambda node, **arguments: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keep a handler of SIGTERM that this process has, as Prefect's engine does: Ray takes the signal for itself.

    If it comes inside, Ray ends what it has started, and raises SystemExit: then the handler is called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before):  # a mere SIG_DFL, than which Ray's own is better
        yield
        return
    try:
        yield
    except SystemExit:
        before(signal.SIGTERM, None)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_answers(address: str) -> None:
    """Raise UserError if an address is none, or nothing answers there; Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    found = re.fullmatch(r"(?:ray://)?(?:[^@/]*@)?(?:\[([^/\]]+)\]|([^/:\s]+)):(\d{1,5})", address)
    if found is None:
        raise UserError(
            f"RAY_ADDRESS={without_secrets(address)} is no address of a Ray cluster; write HOST:PORT, ray://HOST:PORT "
            "or auto, or unset it"
        )
    reasons: list[str] = []
    asking = start_thread(lambda: reasons.append(_refusal(found[1] or found[2], int(found[3]))), name="ray-address")
    asking.join(_SECONDS_IN_ALL)
    if reason := reasons[0] if reasons else "timed out":
        raise NoClusterError(
            f"no Ray cluster at RAY_ADDRESS={without_secrets(address)}: {reason}; start it, or unset RAY_ADDRESS"
        )


def _refusal(host: str, port: int) -> str:
    """Return why no server of Ray's can be there, an empty text if one may.

    Ray speaks gRPC, so HTTP/2: such a server answers a greeting with a frame of its own settings. With Ray itself one
    would know after two minutes, and after a SystemExit.
    """
    try:
        with socket.create_connection((host, port), timeout=_SECONDS_TO_ANSWER) as connection:
            if surroundings().ray_use_tls:
                return ""
            connection.sendall(_GREETING)
            answer = connection.makefile("rb").read(len(_SETTINGS))
    except (OSError, OverflowError, UnicodeError) as error:
        return str(getattr(error, "strerror", None) or error)
    return "" if answer[3:4] == _SETTINGS[3:4] else "what answers there is not Ray"


def _check_socket_paths() -> None:
    """Raise UserError if Ray's sockets would lie too deep: the kernel takes paths of 107 bytes."""
    folder = surroundings().ray_tmpdir or surroundings().tmpdir or "/tmp"
    longest = len(os.fsencode(str(Path(folder).absolute()))) + len(_SOCKET)
    if longest > _LONGEST_SOCKET_PATH:
        raise UserError(
            f"Ray's sockets can't lie under {folder}: their paths would have {longest} bytes, and the system takes "
            f"{_LONGEST_SOCKET_PATH}; set RAY_TMPDIR to a shorter folder, as /tmp"
        )


def check_workers(least: int, resources: Resources) -> None:
    """Raise UserError when the cluster can never have this many workers: a GPU each if it has any, else a CPU."""
    kind, most = ("GPUs" if resources.gpus else "CPUs"), resources.most_workers()
    if least > most:
        have = resources.gpus or sum(cpus for cpus, _ in resources.nodes)
        if resources.growing:
            larger = f"let {variable('ray_nodes')} name more nodes, if the autoscaler may bring them"
        elif surroundings().ray_address:
            larger = (
                f"say with {variable('ray_nodes')} which nodes its autoscaler brings, or set RAY_ADDRESS to another"
            )
        else:
            larger = "set RAY_ADDRESS to a larger cluster"
        raise UserError(
            f"workers={least}, but the Ray cluster has {have} {kind} on {len(resources.nodes)} node(s), so at most "
            f"{most} workers; name fewer with --workers, or {larger}"
        )
