"""The networks that other tests' Ray nodes live in: two clusters, or what a killed session left, never share one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.nodes import Nodes

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs the right to make namespaces"
)


def test_a_killed_session_s_network_is_left_to_it(tmp_path: Path) -> None:
    """Two bridges with one address swallow each other's packets: a node could not reach its head."""
    left = Nodes(tmp_path)
    try:
        there = subprocess.run(
            [
                sys.executable,
                "-c",
                "from tests.integration.nodes import Nodes; import pathlib, sys, os; "
                "print(Nodes(pathlib.Path(sys.argv[1])).host, flush=True); os._exit(1)",
                str(tmp_path),
            ],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            check=False,
        )
        killed = there.stdout.strip()
        here = Nodes(tmp_path)
        try:
            hosts = [left.host, killed, here.host]
            assert all(host.startswith("10.213.") for host in hosts), there.stderr
            assert len(set(hosts)) == 3
        finally:
            here.close()
            number = killed.split(".")[2]
            subprocess.run(["ip", "link", "delete", f"rpb{number}"], check=True)
    finally:
        left.close()


def test_a_process_that_outlives_its_node_leaves_the_next_cluster_its_names(tmp_path: Path) -> None:
    """It keeps the network that it runs in, and would keep the cable there."""
    first = Nodes(tmp_path)
    name, _ = first._networked()
    outlives = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "60"])
    try:
        while _network_of(outlives.pid) != name:
            assert outlives.poll() is None
        first.close()
        second = Nodes(tmp_path)
        try:
            assert second._networked()[0] == name
        finally:
            second.close()
    finally:
        outlives.kill()
        outlives.wait()


def _network_of(process: int) -> str:
    return subprocess.run(
        ["ip", "netns", "identify", str(process)], capture_output=True, text=True, check=False
    ).stdout.strip()
