"""A run's metrics on their way to MLflow while it trains."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.parallel import start_thread
from resnet_pipeline.training.run_directory import RunDirectory

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS, _PATIENCE = 0.2, 60.0


class MetricsSender:
    """A thread that delivers what a run is, and its metrics as they appear, for as long as it is open.

    It begins with the run's first new line: importing MLflow, and making its database, take six seconds of a core,
    which workers that start need. If no line comes it begins after a minute.
    """

    def __init__(
        self,
        tracking: Tracking,
        run: RunDirectory,
        dataset: Dataset,
        *,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        interval: float = 2.0,
    ) -> None:
        self._tracking, self._run, self._dataset, self._interval = tracking, run, dataset, interval
        self._size = _size(run.metrics_file)
        self._parameters, self._tags = parameters or {}, tags or {}
        self._closing = threading.Event()
        self._away = self._described = False
        self._thread = start_thread(self._deliver_until_closed, name="mlflow-sender")

    def close(self, timeout: float = 60.0) -> None:
        """Deliver what is left, for at most ``timeout`` seconds."""
        self._closing.set()
        self._thread.join(timeout)
        if self._thread.is_alive() or self._away:
            _log.warning(
                "MLflow at %s did not take all metrics; they are in %s and are sent when this run is started again",
                self._tracking.address,
                self._run.metrics_file,
            )

    def _deliver_until_closed(self) -> None:
        latest = time.monotonic() + _PATIENCE
        while _size(self._run.metrics_file) == self._size and time.monotonic() < latest:
            if self._closing.wait(_SECONDS_BETWEEN_LOOKS):
                break
        closing = False
        while True:
            try:
                self._send()
                if self._away:
                    _log.warning("MLflow answers again; metrics delivered")  # for whoever saw the first one
                self._away = False
            except UserError as error:
                if not self._away:
                    _log.warning("%s; training goes on, metrics are kept and sent later", error)
                self._away = True
            if closing:
                return
            closing = self._closing.wait(self._interval)

    def _send(self) -> None:
        if not self._described:
            self._tracking.resume(self._run)
            self._tracking.describe(self._run, self._parameters, self._tags, self._dataset)
            self._described = True
        self._tracking.deliver(self._run)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
