"""Where the time of training goes, measured between log points."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from torch.profiler import record_function

from resnet_pipeline.training.metrics_log import Pace

WAITING = "waiting for data"  # as a trace shows it


class Throughput:
    """Images, steps and waiting for data since the last reading; what is `paused` (validation, say) does not count.

    ``clock`` returns seconds.

    Example: ``with throughput.step(256): train_step(...)``
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = self._reported = clock()
        self._images = 0
        self._waited = 0.0
        self._steps: list[float] = []
        self.waited = 0.0  # in all

    @contextmanager
    def step(self, images: int) -> Iterator[None]:
        """Inside, a step with so many images is made; what stands between steps does not count as theirs."""
        start = self._clock()
        yield
        self._images += images
        self._steps.append(self._clock() - start)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, the time counts as waiting for data."""
        start = self._clock()
        with record_function(WAITING):
            yield
        seconds = self._clock() - start
        self._waited += seconds
        self.waited += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the time does not count."""
        start = self._clock()
        yield
        seconds = self._clock() - start
        self._start += seconds
        self._reported += seconds

    def elapsed(self) -> float:
        """Return the seconds since the last call, without pauses: each is reported once."""
        now = self._clock()
        seconds, self._reported = now - self._reported, now
        return seconds

    def read(self) -> Pace:
        """Return the pace since the last reading, and start afresh."""
        now = self._clock()
        seconds = max(now - self._start, 1e-9)
        median, high, longest = np.percentile(self._steps or [0.0], [50, 95, 100])
        pace = Pace(
            images_per_second=round(self._images / seconds, 2),
            data_wait=round(self._waited / seconds, 4),
            step_p50=round(median, 5),
            step_p95=round(high, 5),
            step_max=round(longest, 5),
        )
        self._start, self._images, self._waited = now, 0, 0.0
        self._steps.clear()
        return pace
