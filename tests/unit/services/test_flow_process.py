"""The process that Prefect's worker starts and kills, around a command of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest

AROUND = """
import sys
from resnet_pipeline.services import flow_process
flow_process._SECONDS_BEFORE_SIGKILL = float(sys.argv[1])
sys.exit(flow_process.run([sys.executable, "-c", sys.argv[2]], at_our_end=int(sys.argv[3])))
"""
# says where it is; on a signal it says which, saves for a while, and says that it has
WORK = """
import os, signal, sys, time
stopped = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: stopped.append(number))
print(os.getpid(), os.getsid(0), flush=True)
while not stopped:
    time.sleep(0.01)
print("signal", stopped[0], flush=True)
time.sleep(SECONDS)
print("saved", flush=True)
sys.exit(STATUS)
"""


@pytest.fixture
def start():
    """Return a function that starts the command inside, and returns the process around it and the command's id."""
    started = []

    def call(
        *, saving: float = 0.0, status: int = 0, leaves: float = 60.0, at_our_end: int = signal.SIGTERM
    ) -> tuple[subprocess.Popen[str], int]:
        work = WORK.replace("SECONDS", str(saving)).replace("STATUS", str(status))
        process = subprocess.Popen(
            [sys.executable, "-c", AROUND, str(leaves), work, str(int(at_our_end))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        pid, session = map(int, process.stdout.readline().split())
        assert pid == session != os.getsid(0)
        return process, pid

    yield call
    for process in started:
        process.kill()
        with process:  # closes its pipes
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_and_the_status_comes_back(start, number):
    process, _ = start(saving=0.1, status=3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (3, f"signal {int(number)}\nsaved\n", "")


def test_it_leaves_before_sigkill_comes_and_the_command_saves_to_its_end(start):
    process, pid = start(saving=2.0, leaves=0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and psutil.pid_exists(pid)
    assert process.stdout.read() == f"signal {int(signal.SIGTERM)}\nsaved\n"
    assert f"process {pid} is still saving" in process.stderr.read()


def test_when_it_is_killed_the_command_is_told(start):
    process, _ = start()
    process.kill()
    assert process.stdout.read() == f"signal {int(signal.SIGTERM)}\nsaved\n"


def test_when_it_is_killed_the_command_ends_too_if_that_is_wanted(start):
    process, pid = start(at_our_end=signal.SIGKILL)
    process.kill()
    assert process.stdout.read() == "" and process.wait(60) == -signal.SIGKILL
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(60)


def test_a_command_that_was_killed_gives_a_shell_s_status(start):
    process, pid = start()
    os.kill(pid, signal.SIGKILL)
    assert process.wait(60) == 128 + signal.SIGKILL
