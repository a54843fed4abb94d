"""The metrics of a run: written line by line, read as one history.

A line is a JSON object: its kind, the step, the Unix time in seconds, and the fields of the entry of that kind.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

from resnet_pipeline.errors import UserError
from resnet_pipeline.records import INLINE, plain_record, read_record

_END = 65536  # bytes at a file's end, hundreds of lines


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast the steps since the last log point were."""

    images_per_second: float
    data_wait: float
    """The share of the time that was spent waiting for data."""
    step_p50: float
    """A step's seconds: the median, the 95th percentile and the longest."""
    step_p95: float
    step_max: float


@dataclass(frozen=True, kw_only=True)
class TrainEntry:
    """What the steps since the last log point came to."""

    kind: ClassVar[str] = "train"
    epoch: float
    lr: float
    gradient_norm: float
    """Of the last step."""
    figures: Mapping[str, float] = field(metadata=INLINE)
    """The task's (`tasks.Figures`): of classification "loss", and "error" in percent."""
    shard_wait_seconds: float
    """Since the start of the process."""
    pace: Pace = field(metadata=INLINE)


@dataclass(frozen=True, kw_only=True)
class ValidationEntry:
    """What a validation came to."""

    kind: ClassVar[str] = "validation"
    figures: Mapping[str, float] = field(metadata=INLINE)
    """The task's: of classification "top1", "top5" in percent, and the number of "images"."""


@dataclass(frozen=True, kw_only=True)
class SystemEntry:
    """What the machine does, under MLflow's names (`system.SystemMetrics`)."""

    kind: ClassVar[str] = "system"
    values: Mapping[str, float] = field(metadata=INLINE)


@dataclass(frozen=True, kw_only=True)
class CheckpointEntry:
    """A checkpoint: the seconds that training paused for it, and the bytes that were copied."""

    kind: ClassVar[str] = "checkpoint"
    pause: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ProfileEntry:
    """Where a step's time goes (`profile.Profile`): shares of it, which add up to one."""

    kind: ClassVar[str] = "profile"
    communication: float
    compute: float
    data: float
    host: float
    seconds_per_step: float


@dataclass(frozen=True, kw_only=True)
class NoteEntry:
    """A warning."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True, kw_only=True)
class ResumeEntry:
    """The run started, or resumed after the line's step: earlier lines of later steps are void."""

    kind: ClassVar[str] = "resume"
    workers: int


@dataclass(frozen=True, kw_only=True)
class FinishEntry:
    """The run is finished, after so many seconds of training."""

    kind: ClassVar[str] = "done"
    seconds: float


Entry = (
    TrainEntry | ValidationEntry | SystemEntry | CheckpointEntry | ProfileEntry | NoteEntry | ResumeEntry | FinishEntry
)
E = TypeVar("E", bound=Entry)
_ENTRIES: Mapping[str, type[Entry]] = {entry.kind: entry for entry in typing.get_args(Entry)}


@dataclass(frozen=True)
class Line:
    """An entry, the step that it is of, and the Unix time in seconds."""

    step: int
    time: float
    entry: Entry = field(metadata=INLINE)

    @classmethod
    def parse(cls, text: bytes) -> Line | None:
        """Return a line of a metrics file; None for one that a crash has torn, or a disk damaged."""
        try:
            values = json.loads(text)
            kind, step, seconds = (values.pop(name) for name in ("kind", "step", "time"))
            if type(step) is not int or not math.isfinite(seconds):
                return None
            return cls(step, float(seconds), read_record(_ENTRIES[kind], values))
        except (UserError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            return None

    def to_bytes(self) -> bytes:
        """Return the line as it stands in the file."""
        return json.dumps({"kind": self.entry.kind, **plain_record(self)}).encode() + b"\n"


class MetricsLog:
    """The append-only metrics of a run, written by rank 0 alone.

    Each start of the run first appends a `ResumeEntry`. What a full disk did not take is kept and written with the next
    line, so that no metric stops training.

    Example: ``MetricsLog(run.metrics_file).append(100, NoteEntry(text="no room for a checkpoint"))``
    """

    def __init__(self, path: Path, tell: Callable[[bytes], None] = lambda line: None) -> None:
        """``tell`` gets each line too."""
        self._file, self._tell = path.open("ab", buffering=0), tell
        self._lock = threading.Lock()  # notes come from other threads
        # a line that a killed process left half written must not swallow the first of this one
        self._pending = b"" if _ends_a_line(path) else b"\n"

    def append(self, step: int, entry: Entry) -> None:
        """Append an entry of this step, with the time that it is now."""
        line = Line(step, round(time.time(), 3), entry).to_bytes()
        with self._lock:
            self._pending += line
            with suppress(OSError):
                self._pending = self._pending[self._file.write(self._pending) or 0 :]
        self._tell(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class MetricsCopy:
    """A copy of a metrics file that another machine writes: lines come in pieces, some of them more than once.

    Example: ``MetricsCopy(run.metrics_file).take(lines)``
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = set(path.read_bytes().splitlines(keepends=True)) if path.exists() else set()

    def take(self, lines: Iterable[bytes]) -> None:
        """Append the lines, whole ones, that are not there yet; each has its time, so no two are equal."""
        new = [line for line in lines if line not in self._known]
        if new:
            self._known.update(new)
            with self._path.open("ab") as file:
                file.write(b"".join((b"" if _ends_a_line(self._path) else b"\n", *new)))


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")


def read_metrics(path: Path) -> list[Line]:
    """Read a metrics file as one history, without the lines that a resumption made void and those that are damaged.

    Example: ``[line.step for line in read_metrics(run.metrics_file)]``
    """
    history: list[Line] = []
    for line in complete_lines(path):
        if isinstance(line.entry, ResumeEntry):
            history = [earlier for earlier in history if earlier.step <= line.step]
        else:
            history.append(line)
    return history


def entries_of(history: Iterable[Line], kind: type[E]) -> list[tuple[int, E]]:
    """Return the entries of one kind, each with its step.

    Example: ``[(step, found.figures["top1"]) for step, found in entries_of(read_metrics(path), ValidationEntry)]``
    """
    return [(line.step, line.entry) for line in history if isinstance(line.entry, kind)]


class NewLines:
    """The lines that are appended to a metrics file from now on, by whichever machine; the file need not exist yet.

    Example: ``lines = NewLines(run.metrics_file); list(lines.take())``
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size if path.exists() else 0

    def take(self) -> Iterator[Line]:
        """Yield the complete lines since the last call; one that is torn or damaged is skipped."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._read += len(complete)
        yield from _undamaged(complete.splitlines())


def last_step(path: Path) -> int:
    """Return the step of the last line that tells one, 0 if there is none; only the file's end is read.

    Example: ``last_step(run.metrics_file)``
    """
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _END))
        return max((line.step for line in _undamaged(file.readlines())), default=0)


def complete_lines(path: Path) -> Iterator[Line]:
    """Yield the file's lines, those that a resumption made void too; one that is torn or damaged is skipped.

    Example: ``[line.step for line in complete_lines(run.metrics_file)]``
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        yield from _undamaged(file)


def _undamaged(lines: Iterable[bytes]) -> Iterator[Line]:
    return (line for line in map(Line.parse, lines) if line is not None)
