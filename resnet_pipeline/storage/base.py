"""What every storage can do: files by name below a root; nothing else sees whether it is a folder or a bucket.

Storages are small and can be pickled: a worker process opens its own connection.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from resnet_pipeline.errors import UserError


@dataclass(frozen=True)
class Stored:
    """A file: its name (``/`` between folders), its size in bytes, and a ``version`` that changes with its content.

    The version is a modification time or an ETag: it tells two states apart, and is no checksum.
    """

    name: str
    size: int
    version: str


class HeldError(UserError):
    """Another process holds what was asked for; the text says who, if that is known."""


class Storage(Protocol):
    """Files by name below a root. Every method raises UserError, with the file's address, for what goes wrong."""

    @property
    def url(self) -> str:
        """The root as a user writes it: a path, or ``s3://bucket/prefix``."""

    def files(self, prefix: str = "") -> list[Stored]:
        """Return all files whose names start with ``prefix``, at any depth, sorted by name."""

    def stat(self, name: str) -> Stored | None:
        """Return what is known of a file, None if there is none."""

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a file, to its end by default; shorter than ``length`` only at the end of the file."""

    def pieces(self, name: str, offset: int = 0, length: int | None = None) -> list[bytes]:
        """Return the same in the pieces in which it came: bytes that are not needed as one are not copied together."""

    def open(self, name: str) -> BufferedReader:
        """Open a file for reading: seekable, buffered, reading ahead."""

    def write(self, name: str, content: bytes | Path) -> None:
        """Write a file, from bytes or from a local file, in place of what is there; never seen half-written."""

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens if there is none."""

    def lease(self, name: str) -> AbstractContextManager[Callable[[], None]]:
        """Have a file of this name for this process alone while inside; HeldError if another process has it.

        Yields a function that raises UserError if it was lost since. A process that ends, however it ends, holds it no
        more.
        """
