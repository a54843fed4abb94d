"""Where the time of training goes, measured between log points."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import record_function

WAITING = "waiting for data"  # as a trace shows it


class Throughput:
    """Wall time and waiting for data since the last reading; what is `paused` (validation, say) does not count."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._waited = 0.0
        self.seconds = 0.0
        self.waited = 0.0  # in all

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the time counts as waiting for data."""
        start = time.perf_counter()
        with record_function(WAITING):
            yield
        seconds = time.perf_counter() - start
        self._waited += seconds
        self.waited += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the time does not count."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def read(self, images: int) -> dict[str, float]:
        """Return images/s and the share of time spent waiting for data since the last reading, and start afresh."""
        now = time.perf_counter()
        seconds = max(now - self._start, 1e-9)
        rates = {"images_per_second": round(images / seconds, 2), "data_wait": round(self._waited / seconds, 4)}
        self.seconds += seconds
        self._start, self._waited = now, 0.0
        return rates
