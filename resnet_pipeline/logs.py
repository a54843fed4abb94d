"""The program's log: Python's ``logging``, silent until someone asks for it.

Each module has its own logger below the package's. Nothing is set up on import: a notebook stays silent, unless it sets
up logging itself. The command line and Ray's workers call `configured`; Prefect's flows send the same lines to the flow
run (``flows.shell``). Lines carry run, rank and step inside `log_context`, which training enters in each of its
processes. What it warns of is in the run's metrics too (``training.attempt``), where whoever started it reads it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime

from resnet_pipeline.names import printable
from resnet_pipeline.settings import cleaned, settings

PACKAGES = ("resnet_pipeline", "flows")
"""The loggers that everything of this program logs below."""


@dataclass
class LogContext:
    """What every line of a run says beside its message: which run, which of its processes, at which step."""

    run: str | None = None
    rank: int | None = None
    step: int | None = None


_NOWHERE = LogContext()
_context: ContextVar[LogContext] = ContextVar("log_context", default=_NOWHERE)


@contextmanager
def log_context(*, run: str | None = None, rank: int | None = None) -> Iterator[LogContext]:
    """Inside, lines of this thread, and of threads that `parallel.start_thread` starts, carry run, rank and step.

    Example: ``with log_context(run=run.name, rank=0): at_step(5)``
    """
    here = LogContext(run=run, rank=rank)
    token = _context.set(here)
    try:
        yield here
    finally:
        _context.reset(token)


def current_context() -> LogContext:
    """Return what lines that are logged here and now carry."""
    return _context.get()


def at_step(step: int) -> None:
    """Let the lines of the innermost `log_context` carry this step from now on."""
    here = _context.get()
    if here is not _NOWHERE:
        here.step = step


class JsonLines(logging.Formatter):
    """A line of JSON each: time (ISO 8601, UTC), level, logger, message, run, rank, step; exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        values: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **vars(_context.get()),
        }
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values)  # in ASCII: neither a terminal nor a reader of lines finds a sign for itself in it


class Text(logging.Formatter):
    """The message alone; before it the level if it is a warning or worse, and in a worker time, rank and step."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        here, line = _context.get(), printable(super().format(record))
        if record.levelno >= logging.WARNING:
            line = f"{record.levelname.lower()}: {line}"
        if here.rank is None:
            return line
        step = "" if here.step is None else f" step {here.step}"
        return f"{datetime.fromtimestamp(record.created):%H:%M:%S} rank {here.rank}{step}  {line}"


def _clean(record: logging.LogRecord) -> bool:
    """Take the passwords out of the addresses in a line, whoever writes it."""
    record.msg, record.args = cleaned(record.getMessage()), None
    return True


def as_json() -> bool:
    """Return whether the settings ask for JSON lines; UserError as ``settings`` raises it."""
    return settings().log_format == "json"


@contextmanager
def configured(handler: logging.Handler | None = None, *, level: int = logging.INFO) -> Iterator[None]:
    """Inside, the program's lines from ``level`` on go to ``handler`` (None: stderr), as text or as JSON lines.

    A handler that has a formatter keeps it. Raises UserError as ``settings`` does.

    Example: ``with configured(): train_run(Workspace.of(), config, "digits")``
    """
    handler = handler or logging.StreamHandler()
    if handler.formatter is None:
        handler.setFormatter(JsonLines() if as_json() else Text())
    with handled(handler, level=level, propagate=False):
        yield


@contextmanager
def handled(
    handler: logging.Handler, *, level: int, names: Sequence[str] = PACKAGES, propagate: bool | None = None
) -> Iterator[None]:
    """Inside, these loggers have the handler, for lines from ``level`` on; afterwards they are as they were.

    With ``propagate`` False handlers of loggers above, which other libraries may have set up, don't write the lines
    again. A handler that is there already stays as it is.
    """
    loggers = [logger for name in names if handler not in (logger := logging.getLogger(name)).handlers]
    before = [(logger.level, logger.propagate) for logger in loggers]
    handler.setLevel(level)
    handler.addFilter(_clean)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(min(level, logger.level or level))
        logger.propagate = logger.propagate if propagate is None else propagate
    try:
        yield
    finally:
        for logger, (own, propagated) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(own)
            logger.propagate = propagated
