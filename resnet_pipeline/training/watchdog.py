"""Ends a process that hangs: a collective that does not return, a decoder that waits for ever."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable

EXIT_STATUS = 75  # EX_TEMPFAIL: starting it again may help


class HangError(RuntimeError):
    """Another process of the training did not answer in time; the attempt is over, its checkpoints are good."""


class Watchdog:
    """A thread that ends the process when `alive` was not called for ``limit`` seconds, with all stacks on stderr.

    Only time in which the process runs counts: one that was stopped (Ctrl-Z, SIGSTOP) and continued has not hung.
    A process that waits in C code can't be sent an exception, so it is ended; whoever supervises it (Ray, torchrun)
    starts it again from the newest checkpoint.

    Example: ``Watchdog(600.0, lambda: f"after step {step}").alive()``
    """

    def __init__(self, limit: float, where: Callable[[], str]) -> None:
        self._limit, self._where = limit, where
        self._alive = True
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def alive(self) -> None:
        """Say that the process makes progress."""
        self._alive = True

    def close(self) -> None:
        """Watch no more; its thread has ended, and keeps nothing of what it watched."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        tick, silent = min(1.0, self._limit / 4), 0.0
        while not self._closed.wait(tick):
            # by ticks, not by the clock, which goes on while the process is stopped
            silent = 0.0 if self._alive else silent + tick
            self._alive = False
            if silent > self._limit:
                # not by the log, whose lock may be what hangs
                print(  # noqa: T201
                    f"no progress in {self._limit:.0f} s {self._where()}: this process hangs and is ended; the run "
                    "resumes from its newest checkpoint when it is started again",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(EXIT_STATUS)
