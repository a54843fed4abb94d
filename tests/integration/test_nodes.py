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
