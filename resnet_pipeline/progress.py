"""How far long work has come: one interface for the work, and a display for whoever wants to see it.

    with progress("staging digits", total=1797) as bar:
        bar.advance(64)

By default that is a line of the log every few seconds, so nothing if nobody set up logging. The command line shows
bars on a terminal (``cli.console``): a display is whatever `displayed_on` is given.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

_log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0
BYTES = "bytes"


def per_second(rate: float) -> str:
    """Return a rate as it is shown; that of slow work in two digits.

    >>> per_second(2859.6), per_second(1.94), per_second(0.4)
    ('2,860', '1.9', '0.4')
    """
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


class Display(Protocol):
    """Shows bars. It is called in the thread that works, so it must be quick."""

    def begin(self, bar: Bar) -> None:
        """Show a new bar."""

    def update(self, bar: Bar) -> None:
        """Show how far it is now."""

    def end(self, bar: Bar) -> None:
        """Its work has ended, or was interrupted."""


class Bar:
    """How far a piece of work has come. ``total`` None: not known yet; ``before``: what had been done at the beginning.

    The rate is that of images if a unit of the work is several (``images_per_unit``).
    """

    def __init__(
        self,
        title: str = "",
        *,
        total: int | None = None,
        unit: str = "images",
        before: int = 0,
        images_per_unit: int = 1,
        display: Display | None = None,
    ) -> None:
        self.title, self.total, self.unit, self.reached, self.before = title, total, unit, before, before
        self.images_per_unit = images_per_unit
        self.detail = ""
        self._display = display
        self._start = time.monotonic()
        self._rate: float | None = None

    def expect(self, total: int, *, before: int = 0) -> None:
        """Say how many units there are in all, and how many of them had been done before: known only now."""
        self.total, self.before = total, before
        self.reach(before)

    def advance(self, count: int = 1, *, detail: str | None = None) -> None:
        """Say that ``count`` more units are done; ``detail`` is shown beside."""
        self.reach(self.reached + count, detail=detail)

    def reach(self, reached: int, *, detail: str | None = None, rate: float | None = None) -> None:
        """Say that ``reached`` units are reached; ``rate`` is units/s if the work knows better than the clock."""
        if reached == self.before:  # still preparing
            self._start = time.monotonic()
        self.reached, self._rate = reached, rate
        if detail is not None:
            self.detail = detail
        if self._display:
            self._display.update(self)

    @property
    def seconds(self) -> float:
        """How long the work has taken, without its preparation."""
        return max(time.monotonic() - self._start, 1e-9)

    @property
    def rate(self) -> float:
        """Units per second, 0 if that is not known yet."""
        return (self.reached - self.before) / self.seconds if self._rate is None else self._rate

    @property
    def finished(self) -> bool:
        """Whether all is done."""
        return self.total is not None and self.reached >= self.total

    def counts(self) -> str:
        """Return what is done of what: 64/1,797 images, 0.3/1.2 GB."""
        if self.unit == BYTES:
            total = "" if self.total is None else f"/{self.total / 1e9:,.1f}"
            return f"{self.reached / 1e9:,.1f}{total} GB"
        return f"{self.reached:,}{'' if self.total is None else f'/{self.total:,}'} {self.unit}"

    def speed(self) -> str:
        """Return the rate with its unit: 2,860 images/s, 110 MB/s."""
        if self.unit == BYTES:
            return f"{per_second(self.rate / 1e6)} MB/s"
        return f"{per_second(self.rate * self.images_per_unit)} images/s"

    def left(self) -> str:
        """Return the time that is left, as 1:05 left; empty if it is not known, and at the end."""
        rate = self.rate
        if self.total is None or self.finished or not rate:
            return ""
        seconds = int((self.total - self.reached) / rate)
        return f"{seconds // 60}:{seconds % 60:02d} left"


class LogLines:
    """Bars as lines of the log: one every few seconds at most, and one when all is done."""

    def __init__(self, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self._seconds = seconds
        self._shown: dict[Bar, float] = {}

    def begin(self, bar: Bar) -> None:
        """Wait for the first seconds."""
        self._shown[bar] = time.monotonic()

    def update(self, bar: Bar) -> None:
        """Log a line if the last one is old enough."""
        now = time.monotonic()
        if now - self._shown[bar] > self._seconds and not bar.finished:
            self._shown[bar] = now
            self._line(bar)

    def end(self, bar: Bar) -> None:
        """Log the last line, unless the work was interrupted."""
        del self._shown[bar]
        if bar.finished and bar.total:
            self._line(bar)

    def _line(self, bar: Bar) -> None:
        _log.info("%s", "  ".join(filter(None, (bar.title, bar.counts(), bar.detail, bar.speed(), bar.left()))))


_display: ContextVar[Display] = ContextVar("progress_display", default=LogLines())  # noqa: B039 - it keeps no state of its own


@contextmanager
def displayed_on(display: Display) -> Iterator[None]:
    """Inside, bars that this thread begins are shown on this display.

    Example: ``with displayed_on(LogLines()): stage_dataset(Workspace.of(), "builtin:digits", "digits")``
    """
    token = _display.set(display)
    try:
        yield
    finally:
        _display.reset(token)


@contextmanager
def progress(
    title: str, *, total: int | None = None, unit: str = "images", before: int = 0, images_per_unit: int = 1
) -> Iterator[Bar]:
    """Yield a bar for the work inside, shown on the display that `displayed_on` set.

    Example: ``with progress("verifying", total=60) as bar: bar.advance(20)``
    """
    display = _display.get()
    bar = Bar(title, total=total, unit=unit, before=before, images_per_unit=images_per_unit, display=display)
    display.begin(bar)
    try:
        yield bar
    finally:
        display.end(bar)
