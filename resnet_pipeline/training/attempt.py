"""An attempt at a run: what it has to say, whose the run is, and what a mirror has that this machine has not."""

from __future__ import annotations

import os
import time

from resnet_pipeline.errors import UserError
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.training.metrics_log import MetricsLog
from resnet_pipeline.training.mirror import fetch_newer
from resnet_pipeline.training.run_directory import RunDirectory


class TakenOverError(UserError):
    """Another process has started to train this run; this one must not write into it any more."""


class Owner:
    """The attempt that a run belongs to: the last one that was started; a node that was cut off may live on."""

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._name = run, f"{os.getpid()}-{time.time_ns()}"
        run.owner_file.write_text(self._name)

    def check(self) -> None:
        """Raise TakenOverError where a later attempt trains this run."""
        if self._run.owner_file.read_text() != self._name:
            raise TakenOverError(f"{self._run.path} is trained by another process now; this one ends")


def note(run: RunDirectory, step: int, line: str) -> None:
    """Say something that happened to a run: on stdout, and in its metrics, where whoever started it reads it."""
    print(line, flush=True)
    log = MetricsLog(run.metrics_file)
    log.append("note", step, text=line)
    log.close()


def fetch(run: RunDirectory, mirror: Storage) -> None:
    """Bring what the mirror has and this machine has not; a mirror that is away is said, and nothing more."""
    try:
        lines = fetch_newer(run, mirror)
    except UserError as error:
        lines = [f"nothing fetched: {error}"]
    for line in lines:
        note(run, 0, line)
