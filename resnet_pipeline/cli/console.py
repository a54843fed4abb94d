"""What a command shows of its work, on stderr: messages and progress bars on a terminal, plain lines elsewhere.

Results go to stdout. With RESNET_PIPELINE_LOG_FORMAT=json messages and progress are JSON lines.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text as RichText

from resnet_pipeline.logs import Text, as_json, configured
from resnet_pipeline.names import printable
from resnet_pipeline.progress import Bar, displayed_on


def say(text: object) -> None:
    """Print a result on stdout, in which no name moves the cursor or changes colours."""
    print(printable(str(text)))


_STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}


@contextmanager
def shown(*, quiet: bool = False) -> Iterator[None]:
    """Inside, the program's messages and progress appear on stderr; with ``quiet`` only warnings and what is worse.

    Raises UserError as ``settings`` does.
    """
    level = logging.WARNING if quiet else logging.INFO
    console = Console(stderr=True)
    if as_json() or not console.is_terminal:
        with configured(level=level):
            yield
        return
    with configured(_Messages(console), level=level):
        if quiet:
            yield
            return
        with displayed_on(_Bars(console)):
            yield


class _Messages(logging.Handler):
    """Writes lines through rich's console, so that they appear above the bars; never broken into several."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self.setFormatter(Text())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = RichText(self.format(record), style=_STYLES.get(record.levelno, ""))
            self._console.print(text, soft_wrap=True)
        except Exception:
            self.handleError(record)


class _Bars:
    """Bars below one another; they stay on the screen, as they were last, when the outermost has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._tasks: dict[Bar, TaskID] = {}

    def begin(self, bar: Bar) -> None:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[counts]}", markup=False),
                TextColumn("{task.fields[detail]}", markup=False),
                console=self._console,
            )
            self._progress.start()
        self._tasks[bar] = self._progress.add_task(
            bar.title, total=bar.total, completed=bar.reached, counts=bar.counts(), detail=""
        )

    def update(self, bar: Bar) -> None:
        if self._progress is not None:
            detail = "  ".join(filter(None, (bar.detail, bar.speed(), bar.left())))
            self._progress.update(
                self._tasks[bar], completed=bar.reached, total=bar.total, counts=bar.counts(), detail=detail
            )

    def end(self, bar: Bar) -> None:
        del self._tasks[bar]
        if not self._tasks and self._progress is not None:
            self._progress.stop()
            self._progress = None
