"""A Ray cluster of several nodes on this machine: each in a network of its own where that is permitted.

Namespaces give every node an address and a cable that can be pulled. Without the right to make them the nodes are
several raylets at one address, which can be killed but not cut off. Hosts have a /tmp of their own besides, empty at
their start, where they keep all that they keep: they share no folder that anything is written to.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).parent / "ray")
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
# the networks 10.213.N.0/24; each belongs to who could make its bridge: a killed session leaves its bridges behind
_NETWORKS = 250


# /tmp becomes a host's own; what is run from below it, this checkout or its environment, is seen there again
_SEEN = [path for path in (Path(__file__).resolve().parents[2], Path(sys.prefix)) if path.is_relative_to("/tmp")]
_OWN_TMP = " && ".join(
    [
        *(f"exec {9 - number}< {shlex.quote(str(path))}" for number, path in enumerate(_SEEN)),
        "mount -t tmpfs tmpfs /tmp",
        *(
            f"mkdir -p {shlex.quote(str(path))} && "
            # canonical, a descriptor's name would be that of what is now hidden
            f"mount --no-canonicalize --bind /proc/self/fd/{9 - number} {shlex.quote(str(path))}"
            for number, path in enumerate(_SEEN)
        ),
        'cd /tmp && exec "$@"',
    ]
)


def _ip(*words: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *words], capture_output=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.decode()}")
    return done.returncode == 0


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _bridge(network: int) -> str:
    return f"rpb{network}"


def _own_network() -> int | None:
    """Return the number of a network that no one else has, with its bridge up; None without the right to make one."""
    if os.geteuid() or shutil.which("ip") is None:
        return None
    for network in range(_NETWORKS):
        if _ip("link", "add", _bridge(network), "type", "bridge", check=False):
            _ip("addr", "add", f"10.213.{network}.1/24", "dev", _bridge(network))
            _ip("link", "set", _bridge(network), "up")
            return network
    return None


class Nodes:
    """Ray nodes of one CPU each; the first is the head, in this process's own network.

    With ``hosts`` all but the head are hosts with a /tmp of their own, in whose environment that is; the head computes
    nothing. With a ``token`` nobody may join who has not that one.
    """

    def __init__(self, folder: Path, hosts: Mapping[str, str] | None = None, *, token: str | None = None) -> None:
        self._folder = folder  # of the nodes' logs
        self._hosts = hosts
        self._network = _own_network()
        self.namespaces = self._network is not None
        self.settings = SETTINGS | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {})
        """In the environment of all nodes, and of whoever joins them."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._count = 0
        self.host = self._address(1)
        self.address = f"{self.host}:{_free_port()}"  # another cluster of this session may still be up

    def start(self, *options: str) -> None:
        """Start the head."""
        address, _, port = self.address.rpartition(":")
        head = ["--head", f"--port={port}", f"--node-ip-address={address}", "--include-dashboard=false"]
        self._start("head", [*head, *options])

    def add(self) -> str:
        """Start one more node and return its name."""
        name, address = self._networked()
        self._start(name, [f"--address={self.address}", f"--node-ip-address={address}"])
        return name

    def start_host(self, command: list[str], environment: Mapping[str, str]) -> str:
        """Start a command on a host of its own, with a /tmp and processes of its own, and return the host's name.

        Ray's drivers join the node that they find among the processes that they see.
        """
        assert self.namespaces
        name, _ = self._networked()
        with (self._folder / f"{name}.log").open("wb") as output:
            self._processes[name] = subprocess.Popen(
                [
                    *("ip", "netns", "exec", name, "unshare", "--mount", "--pid", "--fork", "--mount-proc"),
                    *("sh", "-c", _OWN_TMP, "sh", *command),
                ],
                env={**os.environ, **self.settings, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return name

    def stop(self, name: str, seconds: float) -> str:
        """End a host as its operator does, by SIGTERM, and return what its command has printed."""
        process = self._processes.pop(name)
        (first,) = psutil.Process(process.pid).children()  # below unshare
        first.terminate()
        process.wait(seconds)
        return self.log(name)

    def log(self, name: str) -> str:
        """Return what a node or host has printed."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def _networked(self) -> tuple[str, str]:
        """Return the name of one more node, and its address, after making a network of its own for it."""
        self._count += 1
        name = self._namespace(self._count)
        address = self._address(self._count + 1)
        if self._network is not None:
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", _bridge(self._network), "up")
            for words in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
                _ip("-n", name, *words)
            _ip("-n", name, "link", "set", "lo", "up")
        return name, address

    def workers(self) -> list[tuple[str, psutil.Process]]:
        """Return the training workers that live, each with its node, the head's last."""
        return self.processes("RayTrainWorker")

    def processes(self, kind: str) -> list[tuple[str, psutil.Process]]:
        """Return the processes that live of a class of actors, each with its node, the head's last."""
        found = []
        for name, process in self._processes.items():
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    if f"ray::{kind}" in " ".join(child.cmdline()):
                        found.append((name, child))
        return sorted(found, key=lambda worker: worker[0] == "head")

    def names(self) -> list[str]:
        """Return the nodes but the head."""
        return [name for name in self._processes if name != "head"]

    def roots(self) -> list[Path]:
        """Return the file systems of all nodes but the head, as they are seen from here."""
        return [Path(f"/proc/{process.pid}/root") for name, process in self._processes.items() if name != "head"]

    def kill(self, name: str) -> None:
        """End a node as a power cut does: its raylet, and all that it started, by SIGKILL."""
        self._end(name)

    def kill_raylet(self, name: str) -> None:
        """End a node's raylet alone, as the kernel does for want of memory."""
        (raylet,) = (
            child
            for child in psutil.Process(self._processes[name].pid).children(recursive=True)
            if child.name() == "raylet"
        )
        raylet.kill()

    def announce_end(self, name: str, *, seconds: int) -> None:
        """Tell Ray that a node will be taken away, as a cloud's autoscaler does for spot machines."""
        from ray._raylet import GcsClient

        known = GcsClient(address=self.address).get_all_node_info()
        (node_id,) = (node.hex() for node, info in known.items() if info.node_name == name)
        subprocess.run(
            [
                *(RAY, "drain-node", f"--address={self.address}", f"--node-id={node_id}"),
                *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"),
                f"--deadline-remaining-seconds={seconds}",
            ],
            check=True,
            capture_output=True,
            env={**os.environ, **self.settings},
        )

    def cut_off(self, name: str) -> None:
        """Pull the node's cable; its processes live on."""
        _ip("link", "set", name, "down")

    @contextlib.contextmanager
    def without(self, name: str, folder: Path) -> Iterator[None]:
        """Inside, the node sees an empty folder: as in a container that does not mount it."""
        inside = ["nsenter", f"--target={self._processes[name].pid}", "--mount"]
        subprocess.run([*inside, "mount", "-t", "tmpfs", "none", folder], check=True, capture_output=True)
        try:
            yield
        finally:
            subprocess.run([*inside, "umount", folder], check=True, capture_output=True)

    def close(self) -> None:
        """End all processes that were started here and remove the networks."""
        for name in reversed(list(self._processes)):
            self._end(name)
        if self._network is not None:
            for number in range(1, self._count + 1):
                # a process that got away keeps its network, and the cable in it would keep its name
                _ip("link", "delete", self._namespace(number), check=False)
                _ip("netns", "delete", self._namespace(number), check=False)
            _ip("link", "delete", _bridge(self._network), check=False)  # last: it reserves the names above

    def _address(self, number: int) -> str:
        return "127.0.0.1" if self._network is None else f"10.213.{self._network}.{number}"

    def _namespace(self, number: int) -> str:
        return f"rp{self._network}n{number}"

    def _start(self, name: str, options: list[str]) -> None:
        inside = ["ip", "netns", "exec", name] if self.namespaces and name != "head" else []
        own = self._hosts if self._hosts is not None and name != "head" else {}
        if own and self.namespaces:
            inside += ["unshare", "--mount", "sh", "-c", _OWN_TMP, "sh"]
        cpus = 0 if self._hosts is not None and name == "head" else 1
        interface = "lo"
        if self._network is not None:
            interface = _bridge(self._network) if name == "head" else "eth0"
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            self._processes[name] = subprocess.Popen(
                [
                    *inside,
                    RAY,
                    "start",
                    "--block",
                    f"--num-cpus={cpus}",
                    f"--node-name={name}",
                    "--disable-usage-stats",
                    *options,
                ],
                env={**os.environ, **self.settings, **own, "GLOO_SOCKET_IFNAME": interface},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert self._processes[name].poll() is None, f"the Ray node {name} ended at its start: {log.read_text()}"
            assert time.monotonic() < deadline, f"the Ray node {name} does not join: {log.read_text()}"
            time.sleep(0.2)

    def _end(self, name: str) -> None:
        process = self._processes.pop(name)
        tree = []
        with contextlib.suppress(psutil.Error):
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in tree:
            with contextlib.suppress(psutil.Error):
                one.kill()
        process.wait(30)


@contextlib.contextmanager
def nodes(folder: Path, count: int, hosts: Mapping[str, str] | None = None) -> Iterator[Nodes]:
    """Yield a cluster of a head and ``count`` more nodes, or ``hosts``."""
    cluster = Nodes(folder, hosts)
    try:
        cluster.start()
        for _ in range(count):
            cluster.add()
        yield cluster
    finally:
        cluster.close()
