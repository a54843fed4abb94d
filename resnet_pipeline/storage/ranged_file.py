"""A file over ranged reads: seekable, and reading ahead when it is read in sequence."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

_FIRST, _LARGEST = 128 * 2**10, 8 * 2**20
_DEPTH = 4
"""A jump reads little; each following read is twice as large, and up to this many are under way."""

ReadRange = Callable[[int, int], bytes]
"""Called with an offset and a length; returns that many bytes."""


def read_ahead(read: ReadRange, size: int) -> io.BufferedReader:
    """Return a file of ``size`` bytes whose content ``read`` fetches.

    >>> read_ahead(lambda start, size: b"0123456789"[start : start + size], 10).read(4)
    b'0123'
    """
    return io.BufferedReader(_ReadAhead(read, size), 2**18)


class SeekableFile(io.RawIOBase):
    """What files have in common that are made of something else: a position, and that they can be read and sought."""

    def __init__(self) -> None:
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True, as far as what it is made of can be sought."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position


@dataclass(frozen=True)
class _Segment:
    start: int
    stop: int
    content: Future[bytes]


class _ReadAhead(SeekableFile):
    def __init__(self, read: ReadRange, size: int) -> None:
        super().__init__()
        self._read, self._size = read, size
        self._segments: deque[_Segment] = deque()
        self._length, self._depth = _FIRST, 1
        self._pool = ThreadPoolExecutor(_DEPTH, thread_name_prefix="read-ahead")

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if self._position >= self._size:
            return 0
        segment = self._here()
        content = segment.content.result()
        start = self._position - segment.start
        piece = memoryview(content)[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._drop()
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _here(self) -> _Segment:
        """Return the segment of the position; ask for the ones after it."""
        segments = self._segments
        if segments and not segments[0].start <= self._position <= segments[-1].stop:
            self._drop()
            self._length, self._depth = _FIRST, 1
        while segments and segments[0].stop <= self._position:
            segments.popleft()
            self._depth = min(self._depth + 1, _DEPTH)
        start = segments[-1].stop if segments else self._position
        while len(segments) < self._depth and start < self._size:
            stop = min(start + self._length, self._size)
            segments.append(_Segment(start, stop, self._pool.submit(self._read, start, stop - start)))
            start, self._length = stop, min(2 * self._length, _LARGEST)
        return segments[0]

    def _drop(self) -> None:
        while self._segments:
            self._segments.popleft().content.cancel()
