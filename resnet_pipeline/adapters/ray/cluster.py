"""A Ray cluster, here or elsewhere: how many workers it has room for, and CPUs for each; Ray chooses the nodes."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_pipeline.errors import UserError
from resnet_pipeline.settings import cleaned, for_children, surroundings, without_secrets
from resnet_pipeline.training.distributed import collective_timeout

_SECONDS_TO_ANSWER = 8  # of each address that the name has
_LONGEST_SOCKET_PATH = 107
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the cluster has, whether free or not: (CPUs, GPUs) of each node."""

    nodes: tuple[tuple[int, int], ...]

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(gpus for _, gpus in self.nodes)

    def most_workers(self, cpus: int = 1) -> int:
        """Return how many workers fit at once: each on one node, with ``cpus`` CPUs, and a GPU if there are any."""
        return sum(min(c // cpus, g) if self.gpus else c // cpus for c, g in self.nodes)

    def cpus_per_worker(self, workers: int) -> int:
        """Return the most CPUs that each of ``workers`` workers can have at once, at least 1."""
        counts = range(max((cpus for cpus, _ in self.nodes), default=1), 1, -1)
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

    # join or start, unless an outer one has
    own = not ray.is_initialized()
    if own:
        address = surroundings().ray_address
        # "local" explicitly: without it Ray attaches to whatever an old cluster left as the current address
        options: dict[str, Any] = {
            "address": address or "local",
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        }
        if address:
            _check_answers(address)
        else:
            _check_socket_paths()
            options |= {"num_cpus": max(2, os.cpu_count() or 1), "include_dashboard": False}
        try:
            ray.init(**options)
        except (OSError, ValueError, RuntimeError) as error:
            reason = cleaned((str(error).splitlines() or [type(error).__name__])[0])
            if not address:
                raise UserError(f"Ray can't be started on this machine: {reason}") from None
            raise UserError(f"no Ray cluster at RAY_ADDRESS={without_secrets(address)}: {reason}") from None
    try:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Resources(nodes=tuple((int(n.get("CPU", 0)), int(n.get("GPU", 0))) for n in alive))
    finally:
        if own:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise UserError if nothing answers at an address of the form host:port; Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?(?:[^@/]*@)?\[?([^/\]]+?)\]?:(\d+)", address)
    if found is None:
        return  # "auto", "local", or a service's own form
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"no Ray cluster at RAY_ADDRESS={without_secrets(address)}: {reason}; start it, or unset RAY_ADDRESS"
        ) from None


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
        raise UserError(
            f"workers={least}, but the Ray cluster has {have} {kind} on {len(resources.nodes)} node(s), so at most "
            f"{most} workers; name fewer with --workers, or set RAY_ADDRESS to a larger cluster"
        )
