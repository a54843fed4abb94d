"""Files over files: one that is hashed as it is read, and a part of one as a file of its own."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import BinaryIO

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.storage.ranged_file import SeekableFile

_BLOCK = 4 * 2**20
_KEPT = 64 * 2**10  # of the block before: how far back a reader may seek


class HashingReader(SeekableFile):
    """Reads a file forwards in large blocks and hashes all of it, also what is skipped; seeks forwards.

    ``on_bytes`` is called after each block with the number of bytes that have been read. Without
    ``hashed`` it only reads.
    """

    def __init__(
        self, file: BinaryIO, on_bytes: Callable[[int], None] = lambda size: None, *, hashed: bool = True
    ) -> None:
        super().__init__()
        self._file, self._on_bytes = file, on_bytes
        self._hashed, self._digest = hashed, hashlib.md5(usedforsecurity=False)
        self._buffer, self._start = b"", 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move from the beginning; what lies between is read when the next byte is asked for."""
        if offset < self._start:
            raise io.UnsupportedOperation("this file is read forwards")
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, fewer only at the end."""
        parts: list[bytes] = []
        while size != 0:
            while self._position >= self._start + len(self._buffer):
                if not self._next():
                    return b"".join(parts)
            begin = self._position - self._start
            part = self._buffer[begin:] if size < 0 else self._buffer[begin : begin + size]
            parts.append(part)
            self._position += len(part)
            size -= len(part) if size > 0 else 0
        return b"".join(parts)

    def hexdigest(self) -> str:
        """Read to the end and return the MD5 of the whole file."""
        while self._next():
            pass
        return self._digest.hexdigest()

    def _next(self) -> bool:
        block = self._file.read(_BLOCK)
        if self._hashed:
            self._digest.update(block)
        kept = self._buffer[-_KEPT:]
        self._start += len(self._buffer) - len(kept)
        self._buffer = kept + block
        self._on_bytes(self._start + len(self._buffer))
        return bool(block)


class Window(SeekableFile):
    """A part of a file as a file: a tar file within a tar file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self._file, self._start, self._size = file, start, size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move from the window's beginning."""
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes of the window."""
        left = max(0, self._size - self._position)
        self._file.seek(self._start + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data


def check_md5(address: str, found: str, published: str) -> None:
    """Raise RefusedError if an archive is not the published one."""
    if found != published:
        raise RefusedError(
            f"archive {address} has MD5 {found}, the published one {published}: its download is damaged, or it is "
            "another file (then add --no-md5)"
        )
