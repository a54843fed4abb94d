"""A flow run's process, as Prefect's worker starts it: Prefect's engine in a session of its own.

The worker (3.8.8) cancels a flow run by SIGTERM to the process that it started, and by SIGKILL 30 s later, which no
setting changes; a checkpoint may take longer. So what it starts is this small process. It hands signals on to the
engine, and ends before the SIGKILL comes: the engine then saves to its end alone. If this process is killed itself,
the kernel sends the engine SIGTERM, at which a training saves and stops too; or SIGKILL, if the training is directed on
a cluster (``adapters.ray.driver``) and goes on without both.

    python -m resnet_pipeline.services.flow_process

is the command of every deployment (flows/prefect.yaml).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

from resnet_pipeline.settings import settings, surroundings

_SECONDS_BEFORE_SIGKILL = 25  # of the worker's 30, which looks every 3
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run(command: list[str], *, at_our_end: int = signal.SIGTERM) -> int:
    """Run a command in a session of its own; return its exit status, that of a shell if a signal has ended it.

    SIGTERM and SIGINT are handed on. The command gets ``at_our_end`` if this process is killed. Some time after a
    SIGTERM this process ends with status 0, whether the command has ended or not.

    Example: ``sys.exit(run([sys.executable, "-m", "prefect.engine"]))``
    """
    libc, me = ctypes.CDLL(None), os.getpid()

    def follow() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, at_our_end)
        if os.getppid() != me:  # it has ended in between
            os._exit(1)

    early: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, _SECONDS_BEFORE_SIGKILL)
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        left = process.pid if process else "?"
        os.write(2, f"process {left} is still saving its state; it ends by itself\n".encode())
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    signal.signal(signal.SIGALRM, leave)
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=follow)
    for missed in early:
        process.send_signal(missed)
    status = process.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    directed = surroundings().ray_address and settings().runs  # on the cluster
    engine = [sys.executable, "-m", "prefect.engine", *sys.argv[1:]]
    sys.exit(run(engine, at_our_end=signal.SIGKILL if directed else signal.SIGTERM))
