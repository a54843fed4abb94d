"""Who makes the shards: processes of this machine, or others behind the same protocol (``adapters.ray.staging``)."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Protocol

from resnet_pipeline.errors import UserError
from resnet_pipeline.parallel import cores
from resnet_pipeline.staging import shard_writer
from resnet_pipeline.staging.shard_writer import Outcome, Task, pack_shard

GUARD = 'in a script, call it below `if __name__ == "__main__":`'


class Workers(Protocol):
    """Makes shards elsewhere."""

    @property
    def count(self) -> int:
        """How many shards are made at once."""

    def submit(self, task: Task) -> Future[Outcome]:
        """Begin with a task when a worker is free."""

    def running(self) -> tuple[int, int, int] | None:
        """Return the images, bytes and refusals so far, those of unfinished shards included; None: not known."""

    @property
    def begun(self) -> bool:
        """Whether a worker could start."""

    def close(self) -> None:
        """End, giving up what is unfinished."""


def check_guard() -> None:
    """Raise UserError in a worker process that is still importing the script that staging was called from.

    A script is imported by each process that it starts; what it calls outside of a guard is called there again.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(f"staging was called while a worker process imports the script: {GUARD}")


class Processes:
    """Worker processes, one for each CPU core by default. They end with this process, however it ends."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count or cores()
        # forkserver: a forked copy of this process, which may have threads (Prefect's, DALI's), may hang; and a process
        # that is started anew takes a second of a core for its imports, here made once for all
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([shard_writer.__name__])
        # images, bytes, refusals; whether to stop; whether a process has begun
        self._counts = context.Array("q", 5)
        # its environment is of the time when the server was started
        given = (self._counts, dict(os.environ))
        self._pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_begin, initargs=given)

    def submit(self, task: Task) -> Future[Outcome]:
        """Begin with a task when a process is free."""
        return self._pool.submit(_work, task)

    def running(self) -> tuple[int, int, int] | None:
        """Return the images, bytes and refusals so far."""
        with self._counts.get_lock():
            return self._counts[0], self._counts[1], self._counts[2]

    @property
    def begun(self) -> bool:
        """Whether a process could start."""
        return bool(self._counts[4])

    def close(self) -> None:
        """Stop the processes within some images."""
        self._counts[3] = 1
        self._pool.shutdown(wait=True, cancel_futures=True)


_shared: Any = None


def _begin(counts: Any, environment: dict[str, str]) -> None:
    global _shared
    _shared = counts
    counts[4] = 1
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # nobody waits for this work any more


def _work(task: Task) -> Outcome:
    return pack_shard(task, _tick)


def _tick(images: int, size: int, refused: int) -> bool:
    with _shared.get_lock():
        for place, value in enumerate((images, size, refused)):
            _shared[place] += value
        return not _shared[3]
