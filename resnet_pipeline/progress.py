"""How far long work has come: one interface for the work, and a display for whoever wants to see it.

    with progress("staging digits", total=1797) as bar:
        bar.advance(64)

By default that is a line of the log every few seconds, in hours of work every few minutes, so nothing if nobody set up
logging. The command line shows bars on a terminal (``cli.console``), and flows on Prefect's pages (``flows.progress``):
a display is whatever `displayed_on` or `displayed_also_on` is given.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from resnet_pipeline.settings import settings

_log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES, MOST_SECONDS_BETWEEN_LINES = 5.0, 600.0
RARER = 1 / 30
"""The longer the work takes, the rarer its lines: each waits for this share of the time so far. Three days have 600."""
BYTES = "bytes"

_SECONDS_WORTH_SAYING = 300.0  # shorter work is over before its forecast is read
_SECONDS_TO_MEASURE = 10.0  # before a pace is trusted, if the work does not know its own
_SECONDS_OF_ITS_OWN = 60.0  # for so long a pace is trusted that the work knows itself
_WRONG_BY = 0.25  # a forecast whose end is off by this part is said again


def per_second(rate: float) -> str:
    """Return a rate as it is shown; that of slow work in two digits.

    >>> per_second(2859.6), per_second(1.94), per_second(0.4)
    ('2,860', '1.9', '0.4')
    """
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def hours(seconds: float) -> str:
    """Return a length of time as one says it.

    >>> hours(50), hours(1200), hours(11_000), hours(400_000)
    ('1 minute', '20 minutes', '3.1 hours', '4.6 days')
    """
    minutes = max(1, round(seconds / 60))
    if minutes < 90:
        return f"{minutes} minute{'s' if minutes > 1 else ''}"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86_400:.1f} days"


def cost(seconds: float, an_hour: float | None) -> str:
    """Return what so many seconds cost at a price an hour, to go after their length; empty if there is no price.

    >>> cost(5400, 24.0), cost(5400, None)
    (', 36.00 at 24.00 an hour', '')
    """
    return "" if an_hour is None else f", {seconds / 3600 * an_hour:,.2f} at {an_hour:,.2f} an hour"


_price: ContextVar[float | None] = ContextVar("price_an_hour", default=None)


def price_an_hour() -> float | None:
    """Return what an hour of the hardware costs: what `priced` says, else RESNET_PIPELINE_PRICE; None: not known."""
    given = _price.get()
    return settings().price if given is None else given


@contextmanager
def priced(an_hour: float | None) -> Iterator[None]:
    """Inside, work costs so much an hour; None: as the environment says.

    Example: ``with priced(24.0): train_run(workspace, config, "ilsvrc2012")``
    """
    token = _price.set(an_hour)
    try:
        yield
    finally:
        _price.reset(token)


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
        displays: Sequence[Display] = (),
    ) -> None:
        self.title, self.total, self.unit, self.reached, self.before = title, total, unit, before, before
        self.images_per_unit = images_per_unit
        self.detail = ""
        self._displays = displays
        self._start = time.monotonic()
        self._rate: float | None = None
        self._forecast = Forecast()

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
        for display in self._displays:
            display.update(self)
        if self._displays:
            self._forecast.take(self)

    @property
    def seconds(self) -> float:
        """How long the work has taken, without its preparation."""
        return max(time.monotonic() - self._start, 1e-9)

    @property
    def rate(self) -> float:
        """Units per second, 0 if that is not known yet."""
        return (self.reached - self.before) / self.seconds if self._rate is None else self._rate

    @property
    def own_rate(self) -> float | None:
        """Units per second as the work itself says, None if it does not."""
        return self._rate

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
        """Return the time that is left, as 1:05 left or 30:01:05 left; empty if it is not known, and at the end."""
        rate = self.rate
        if self.total is None or self.finished or not rate:
            return ""
        minutes, seconds = divmod(int((self.total - self.reached) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d} left" if hours else f"{minutes}:{seconds:02d} left"

    def line(self) -> str:
        """Return all of it as one line: title, counts, detail, rate and what is left."""
        return "  ".join(filter(None, (self.title, self.counts(), self.detail, self.speed(), self.left())))


class Forecast:
    """Says in the log how long a bar's work still takes, and what that costs, as soon as its pace is known.

    It says so again if that was wrong. A pace that the work knows itself is believed at once, else the clock's after
    some seconds; after a minute the clock's alone, which counts validations and checkpoints too.
    """

    def __init__(self) -> None:
        self._price = price_an_hour()
        self._first: tuple[float, int] | None = None
        self._end: float | None = None

    def take(self, bar: Bar) -> None:
        """Take in how far a bar is now."""
        if bar.total is None or bar.finished or bar.reached <= bar.before:
            return
        now = time.monotonic()
        since, reached = self._first = self._first or (now, bar.reached)
        rate = bar.own_rate
        if now - since >= (_SECONDS_TO_MEASURE if rate is None else _SECONDS_OF_ITS_OWN):
            rate = (bar.reached - reached) / (now - since)
        if not rate:
            return
        left = (bar.total - bar.reached) / rate
        if left < _SECONDS_WORTH_SAYING:
            return
        if self._end is None or abs(now + left - self._end) > _WRONG_BY * (self._end - since):
            self._end = now + left
            _log.info("%s: about %s to go%s", bar.title, hours(left), cost(left, self._price))


class LogLines:
    """Bars as lines of the log: one every few seconds at most, rarer ones of long work, and one when all is done."""

    def __init__(self, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self._seconds = seconds
        self._begun: dict[Bar, float] = {}
        self._shown: dict[Bar, float] = {}

    def begin(self, bar: Bar) -> None:
        """Wait for the first seconds."""
        self._begun[bar] = self._shown[bar] = time.monotonic()

    def update(self, bar: Bar) -> None:
        """Log a line if the last one is old enough."""
        now = time.monotonic()
        pause = min(max(self._seconds, RARER * (now - self._begun[bar])), MOST_SECONDS_BETWEEN_LINES)
        if now - self._shown[bar] > pause and not bar.finished:
            self._shown[bar] = now
            self._line(bar)

    def end(self, bar: Bar) -> None:
        """Log the last line, unless the work was interrupted."""
        del self._begun[bar], self._shown[bar]
        if bar.finished and bar.total:
            self._line(bar)

    def _line(self, bar: Bar) -> None:
        _log.info("%s", bar.line())


_displays: ContextVar[tuple[Display, ...]] = ContextVar("progress_displays", default=(LogLines(),))


@contextmanager
def displayed_on(*displays: Display) -> Iterator[None]:
    """Inside, bars that this thread begins are shown on these displays alone.

    Example: ``with displayed_on(LogLines()): stage_dataset(Workspace.of(), "builtin:digits", "digits")``
    """
    token = _displays.set(displays)
    try:
        yield
    finally:
        _displays.reset(token)


@contextmanager
def displayed_also_on(display: Display) -> Iterator[None]:
    """Inside, bars that this thread begins are shown on this display too; on the others as before.

    Example: ``with displayed_also_on(on_the_flow_run): stage_dataset(Workspace.of(), "builtin:digits", "digits")``
    """
    before = _displays.get()
    with displayed_on(*before, *([] if display in before else [display])):
        yield


@contextmanager
def progress(
    title: str, *, total: int | None = None, unit: str = "images", before: int = 0, images_per_unit: int = 1
) -> Iterator[Bar]:
    """Yield a bar for the work inside, shown on the displays that `displayed_on` and `displayed_also_on` set.

    Example: ``with progress("verifying", total=60) as bar: bar.advance(20)``
    """
    displays = _displays.get()
    bar = Bar(title, total=total, unit=unit, before=before, images_per_unit=images_per_unit, displays=displays)
    for display in displays:
        display.begin(bar)
    try:
        yield bar
    finally:
        for display in displays:
            display.end(bar)
