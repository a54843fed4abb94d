"""A folder of this machine as a storage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing
from resnet_pipeline.storage.base import Stored


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
        """Return size and modification time of a file, None if there is none."""
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
