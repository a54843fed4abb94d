"""A folder of this machine as a storage."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from resnet_pipeline.errors import RefusedError, UserError
from resnet_pipeline.files import replacing
from resnet_pipeline.storage.base import HeldError, Stored

_log = logging.getLogger(__name__)

_SECONDS_OF_A_LOOK = 0.2


@dataclass(frozen=True)
class Listing:
    """All that a folder holds, by name: its files, folders with nothing in them, and what is neither, with the reason.

    Links are followed; names are those of the links.
    """

    files: list[Stored]
    empty: list[str]
    others: list[tuple[str, str]]


@dataclass(frozen=True)
class LocalStorage:
    """A folder of this machine."""

    root: Path

    @property
    def url(self) -> str:
        """The folder's path."""
        return str(self.root)

    def files(self, prefix: str = "") -> list[Stored]:
        """Return all files whose names start with ``prefix``; links are followed, what can't be listed is left out."""
        found = []
        for folder, names in self._walk(strict=False):
            for name in (f"{folder}{name}" for name in names):
                if name.startswith(prefix):
                    with suppress(OSError):
                        found += [stored] if (stored := self._found(name)) else []
        return sorted(found, key=lambda stored: stored.name)

    def listing(self) -> Listing:
        """Return all that the folder holds.

        Raises UserError for a folder that can't be listed, RefusedError for a link to a folder that holds it.
        """
        found: list[Stored] = []
        empty: list[str] = []
        others: list[tuple[str, str]] = []
        for folder, names in self._walk(strict=True):
            if not names:
                empty.append(folder.removesuffix("/"))
            for name in (f"{folder}{name}" for name in names):
                path = self.root / name
                with _named(path, "read"):
                    stored = self._found(name)
                if stored is not None:
                    found.append(stored)
                elif not path.exists():
                    others.append((name, "a broken link"))
                elif not path.is_dir():
                    others.append((name, "no regular file"))
        found.sort(key=lambda stored: stored.name)
        return Listing(found, sorted(empty), sorted(others))

    def stat(self, name: str) -> Stored | None:
        """Return size and modification time of a file, None if there is none."""
        with _named(self.root / name, "read"):
            return self._found(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of a file."""
        with _named(self.root / name, "read"), (self.root / name).open("rb") as file:
            file.seek(offset)
            return file.read() if length is None else file.read(length)

    def pieces(self, name: str, offset: int = 0, length: int | None = None) -> list[bytes]:
        """Return a range of a file, in one piece."""
        return [self.read(name, offset, length)]

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

    @contextmanager
    def lease(self, name: str) -> Iterator[Callable[[], None]]:
        """Hold the kernel's lock on a file, which ends with the process; the file is removed at the end."""
        path = self.root / name
        with _named(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            held = _locked(path)
        try:
            yield lambda: None
        finally:
            path.unlink(missing_ok=True)
            os.close(held)

    def is_leased(self, name: str) -> bool:
        """Return whether a process holds this lease now; False where there are no locks.

        Example: ``LocalStorage(workspace.runs).is_leased(".digits.lock")``
        """
        try:
            with (self.root / name).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _found(self, name: str) -> Stored | None:
        try:
            found = (self.root / name).stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # a broken link, too
                return None
            raise
        return Stored(name, found.st_size, str(found.st_mtime_ns)) if stat.S_ISREG(found.st_mode) else None

    def _walk(self, *, strict: bool) -> Iterator[tuple[str, list[str]]]:
        """Yield each folder, as ``""`` or ``a/b/``, and the names in it, its folders' too.

        A link to a folder that holds it is not followed; ``strict`` raises for it, and for what can't be listed.
        """
        waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
        while waiting:
            folder, above = waiting.pop()
            path = self.root / folder
            try:
                found = path.stat()
                here = (found.st_dev, found.st_ino)
                if here in above:
                    raise RefusedError(f"{path} is a link to a folder that holds it; remove the link")
                with os.scandir(path) as entries:
                    names = {entry.name: _is_folder(entry) for entry in entries}
            except OSError as error:
                if strict:
                    raise UserError(f"{path} can't be listed: {error.strerror or error}") from None
                continue
            except RefusedError:
                if strict:
                    raise
                continue
            yield folder, sorted(names)
            inside = above | {here}
            waiting += [(f"{folder}{name}/", inside) for name in sorted(names, reverse=True) if names[name]]


def _locked(path: Path) -> int:
    """Return the descriptor of a file that this process has locked, and put its name into; HeldError if another has."""
    until = time.monotonic() + _SECONDS_OF_A_LOOK
    while True:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = path.exists() and os.path.samestat(os.fstat(held), path.stat())
        except BlockingIOError:
            who = os.pread(held, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(held)
            if time.monotonic() < until:  # `is_leased` locks it for an instant
                time.sleep(0.02)
                continue
            raise HeldError(f"{path} is in use by {who}") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                os.close(held)
                raise
            _log.warning("%s: there are no locks in this file system; start nothing twice at once", path.parent)
            ours = True
        if ours:
            os.truncate(held, 0)
            os.pwrite(held, f"process {os.getpid()} of {socket.gethostname()}\n".encode(), 0)
            return held
        os.close(held)  # who held it before has removed it meanwhile


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


@contextmanager
def _named(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be {what}: {error.strerror or error}") from None
