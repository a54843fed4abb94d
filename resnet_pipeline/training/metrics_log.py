"""The metrics of a run: written line by line, read as one history."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


class MetricsLog:
    """The append-only metrics of a run, written by rank 0 alone.

    A resumed run first appends ``{"kind": "resume", "step": s}``; readers then drop what came after step s. What a
    full disk did not take is kept and written with the next line, so that no metric stops training.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()  # notes come from other threads
        # a line that a killed process left half written must not swallow the first of this one
        self._pending = b"" if _ends_a_line(path) else b"\n"

    def append(self, kind: str, step: int, **values: float | str) -> None:
        """Append a line: kind (train, validation, system, checkpoint, note, resume, done), step, Unix time, values."""
        line = json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **values}) + "\n"
        with self._lock:
            self._pending += line.encode()
            with suppress(OSError):
                self._pending = self._pending[self._file.write(self._pending) or 0 :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file as one history: lines that a resumption made void are dropped, a torn last line too."""
    history: list[dict[str, Any]] = []
    for line in complete_lines(path):
        if line["kind"] == "resume":
            history = [h for h in history if h["step"] <= line["step"]]
        else:
            history.append(line)
    return history


class NewLines:
    """The lines that are appended to a metrics file from now on, by whichever machine; the file need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = path.stat().st_size if path.exists() else 0

    def take(self) -> Iterator[dict[str, Any]]:
        """Yield the complete lines since the last call; one that is torn or damaged is skipped."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._read += len(complete)
        yield from _whole(complete.splitlines())


def complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the file's parsed lines; one that a crash has torn, or a disk damaged, is skipped."""
    if not path.exists():
        return
    with path.open("rb") as file:
        yield from _whole(file)


def _whole(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for text in lines:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if is_metrics_line(line):
            yield line


def is_metrics_line(value: Any) -> bool:
    """Return whether a JSON value is a line of metrics: an object with a kind and a step."""
    return isinstance(value, dict) and isinstance(value.get("kind"), str) and type(value.get("step")) is int
