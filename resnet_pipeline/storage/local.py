"""Where files lie: a folder of this machine here, a bucket in ``storage.s3``; nothing else sees a difference.

Storages are small and can be pickled: a worker process opens its own connection.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from resnet_pipeline.errors import UserError
from resnet_pipeline.workspace import replacing


@dataclass(frozen=True)
class Stored:
    """A file: its name (``/`` between folders), its size in bytes, and a ``version`` that changes with its content.

    The version is a modification time or an ETag: it tells two states apart, and is no checksum.
    """

    name: str
    size: int
    version: str


class Storage(Protocol):
    """Files by name below a root. Every method raises UserError, with the file's address, for what goes wrong."""

    @property
    def url(self) -> str:
        """The root as a user writes it: a path, or ``s3://bucket/prefix``."""

    def files(self, prefix: str = "") -> list[Stored]:
        """Return all files whose names start with ``prefix``, at any depth, sorted by name."""

    def stat(self, name: str) -> Stored | None:
        """Return what is known of a file, None where there is none."""

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a file, to its end by default; shorter than ``length`` only at the end of the file."""

    def open(self, name: str) -> BufferedReader:
        """Open a file for reading: seekable, buffered, reading ahead."""

    def write(self, name: str, content: bytes | Path) -> None:
        """Write a file, from bytes or from a local file, in place of what is there; never seen half-written."""

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""


@dataclass(frozen=True)
class LocalStorage:
    """A folder of this machine."""

    root: Path

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.root)

    def files(self, prefix: str = "") -> list[Stored]:
        """Return all files whose names start with ``prefix``; links to folders are followed."""
        found = []
        for folder, _, files in os.walk(self.root, followlinks=True):
            for file in files:
                path = Path(folder) / file
                name = path.relative_to(self.root).as_posix()
                if name.startswith(prefix) and path.is_file():
                    found.append(self._stored(name, path))
        return sorted(found, key=lambda stored: stored.name)

    def stat(self, name: str) -> Stored | None:
        """Return size and modification time of a file, None where there is none."""
        path = self.root / name
        return self._stored(name, path) if path.is_file() else None

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a file."""
        with _named(self.root / name, "read"), (self.root / name).open("rb") as file:
            file.seek(offset)
            return file.read() if length is None else file.read(length)

    def open(self, name: str) -> BufferedReader:
        """Open a file for reading."""
        with _named(self.root / name, "read"):
            return (self.root / name).open("rb")

    def write(self, name: str, content: bytes | Path) -> None:
        """Write a file under a temporary name, then rename it."""
        with _named(self.root / name, "written"), replacing(self.root / name) as temporary:
            if isinstance(content, Path):
                shutil.copyfile(content, temporary)
            else:
                temporary.write_bytes(content)

    def delete(self, name: str) -> None:
        """Remove a file."""
        with _named(self.root / name, "removed"):
            (self.root / name).unlink(missing_ok=True)

    def _stored(self, name: str, path: Path) -> Stored:
        found = path.stat()
        return Stored(name, found.st_size, str(found.st_mtime_ns))


@contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be {what}: {error.strerror or error}") from None
