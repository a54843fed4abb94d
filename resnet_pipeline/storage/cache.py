"""Files of a storage on this machine's disk: verified, shared by all processes, the least recently used ones removed.

A file is named by the SHA-256 of its content, so datasets share what is the same in them, and a shard that was staged
again is another file. While it is fetched, ``.part`` and ``.blocks`` lie beside it. Whoever reads a file holds a shared
lock on it, whoever fetches it an exclusive one. Locks are the kernel's, on bytes of the file ``locks``, and end with
their process, however that ends. A finished file has a fixed modification time: with another one it is hashed again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import sha256_of
from resnet_pipeline.settings import CACHE_VARIABLE
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.download import download

_VERIFIED_NS = 10**18  # the modification time of a file whose hash was right: September 2001
_LEFTOVER_SECONDS = 24 * 3600.0
_ROOM = 2**62  # the lock of whoever makes room


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoomError(UserError):
    """The disk of the cache has no room for a file; one that is there may still be read."""


@dataclass(frozen=True)
class Wanted:
    """A file of a storage and what it must be: its name there, its bytes, and their SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class CacheFolder:
    """Where the cache is, and the most bytes that it may take; None for as many as the disk has."""

    path: Path
    limit: int | None = None


class Cache:
    """The cache as one reader sees it: what it holds stays until it lets go. Threads may share it, for other files."""

    def __init__(self, folder: CacheFolder) -> None:
        self.folder = folder
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            self._locks = os.open(folder.path / "locks", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(
                f"the cache {folder.path} can't be used: {error.strerror}; name another with {CACHE_VARIABLE}"
            ) from None
        weakref.finalize(self, os.close, self._locks)
        self._held: set[str] = set()
        self._mine = threading.Lock()  # locks of one open file don't keep its threads apart
        with self._mine:
            self._remove_leftovers()

    def hold(self, storage: Storage, wanted: Wanted, *, unless: Callable[[], bool] | None = None) -> Path | None:
        """Return the local path of a file that stays there until ``release``; fetch it if it is missing.

        If another process is fetching it, this one waits. If it does not fit into the limit and nothing can be removed,
        the limit is exceeded. With ``unless`` the answer is None instead of either, and as soon as ``unless`` returns
        True. Raises UserError if the file can't be fetched, NoRoomError if that is for want of room on the disk.
        """
        use, bring = _bytes_of(wanted.sha256)
        path = self.folder.path / wanted.sha256
        with self._mine:
            self._held.add(wanted.sha256)
            self._lock(use, fcntl.F_RDLCK)  # only who removes the file excludes that, for a moment
        there = False
        try:
            there = _is_verified(path, wanted.size)
            if not there and self._lock(bring, fcntl.F_WRLCK, wait=unless is None):
                try:
                    there = self._mended(path, wanted) or self._brought(storage, wanted, unless)
                finally:
                    self._lock(bring, fcntl.F_UNLCK)
        finally:
            if not there:
                self.release(wanted)
        if not there:
            return None
        with suppress(OSError):
            os.utime(path, ns=(time.time_ns(), _VERIFIED_NS))
        return path

    def release(self, wanted: Wanted) -> None:
        """Let a file go: it may be removed now, but who has mapped it keeps its content."""
        with self._mine:
            self._held.discard(wanted.sha256)
            self._lock(_bytes_of(wanted.sha256)[0], fcntl.F_UNLCK)

    def _mended(self, path: Path, wanted: Wanted) -> bool:
        """Return whether the file is there after all: brought meanwhile, or copied here with other times."""
        if _is_verified(path, wanted.size):
            return True
        if path.exists() and path.stat().st_size == wanted.size and sha256_of(path) == wanted.sha256:
            os.utime(path, ns=(time.time_ns(), _VERIFIED_NS))
            return True
        return False

    def _brought(self, storage: Storage, wanted: Wanted, unless: Callable[[], bool] | None) -> bool:
        """Fetch a file; retry once if it is not what was wanted. False if it was given up."""
        path = self.folder.path / wanted.sha256
        part, blocks = path.with_suffix(".part"), path.with_suffix(".blocks")
        address = f"{storage.url}/{wanted.name}"
        for _ in range(2):
            with self._mine:
                if not self._make_room(wanted, part, urgent=unless is None):
                    return False
            try:
                found = download(storage, wanted.name, wanted.size, part, blocks, unless=unless)
                if found == wanted.sha256:
                    os.utime(part, ns=(time.time_ns(), _VERIFIED_NS))
                    part.replace(path)
                    blocks.unlink()
                    return True
            except OSError as error:
                _remove(part, blocks)
                raise _error_of(error)(
                    f"{address} can't be brought to the cache {path.parent}: {error.strerror}"
                ) from None
            except UserError:
                if blocks.exists() and not blocks.stat().st_size:
                    _remove(part, blocks)  # nothing to resume from
                raise
            if found is None:
                return False
            _remove(part, blocks)
        stored = storage.stat(wanted.name)
        size = "is missing now" if stored is None else f"has {stored.size:,} bytes (of {wanted.size:,})"
        raise UserError(
            f"{address} is not what was staged: fetched twice, it {size} and does not match its checksum in the "
            "manifest; stage the dataset again"
        )

    def _make_room(self, wanted: Wanted, part: Path, *, urgent: bool) -> bool:
        """Take the room that a file needs, removing what nobody uses, the least recently used first."""
        self._lock(_ROOM, fcntl.F_WRLCK)
        try:
            while True:
                entries = self._entries()
                needed = wanted.size - (entries[part].st_size if part in entries else 0)
                free = shutil.disk_usage(self.folder.path).free
                used = sum(entry.st_size for entry in entries.values())
                too_much = self.folder.limit is not None and used + needed > self.folder.limit
                if not too_much and wanted.size <= free:
                    break
                if not self._removed_one(entries, part):
                    if not urgent:
                        return False
                    if wanted.size > free:
                        raise NoRoomError(
                            f"the cache {self.folder.path} needs {wanted.size / 2**20:,.0f} MiB for {wanted.name}, but "
                            f"{free / 2**20:,.0f} MiB are free; free some, or name another with {CACHE_VARIABLE}"
                        )
                    break  # more than the limit rather than a stop: all that is there is needed at this moment
            with part.open("ab") as file:
                file.truncate(wanted.size)  # others count it from now on
            return True
        except OSError as error:
            _remove(part)
            raise _error_of(error)(f"{part} can't be written: {error.strerror}") from None
        finally:
            self._lock(_ROOM, fcntl.F_UNLCK)

    def _removed_one(self, entries: dict[Path, os.stat_result], keep: Path) -> bool:
        """Remove the least recently used file that nobody uses or brings; False if there is none."""
        for path in sorted(entries, key=lambda p: (p.suffix != ".part", entries[p].st_atime_ns)):
            if path != keep and path.stem not in self._held and self._removed(path):
                return True
        return False

    def _removed(self, path: Path) -> bool:
        use, bring = _bytes_of(path.stem)
        taken = [lock for lock in (bring, use) if self._lock(lock, fcntl.F_WRLCK, wait=False)]
        try:
            if len(taken) < 2:
                return False
            _remove(path, path.with_suffix(".blocks"))
            return True
        finally:
            for lock in taken:
                self._lock(lock, fcntl.F_UNLCK)

    def _remove_leftovers(self) -> None:
        """Remove partial downloads that nobody resumed for a day."""
        for path, found in self._entries().items():
            if path.suffix == ".part" and time.time() - found.st_mtime > _LEFTOVER_SECONDS:
                self._removed(path)

    def _entries(self) -> dict[Path, os.stat_result]:
        found = {}
        for path in self.folder.path.iterdir():
            if len(path.stem) == 64 and path.suffix in ("", ".part"):
                with suppress(FileNotFoundError):
                    found[path] = path.stat()
        return found

    def _lock(self, byte: int, kind: int, *, wait: bool = True) -> bool:
        """Take or leave the lock of a byte; False if another has it and ``wait`` is not set."""
        # of the open file, not of the process: readers in one process exclude each other, and closing one frees none
        command = fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK
        try:
            fcntl.fcntl(self._locks, command, struct.pack("hhqqi0q", kind, os.SEEK_SET, byte, 1, 0))
        except (BlockingIOError, PermissionError):
            return False
        return True


def _bytes_of(sha256: str) -> tuple[int, int]:
    """Return the bytes whose locks mean that a file is used, and that it is being brought."""
    number = int(sha256[:15], 16)
    return 2 * number, 2 * number + 1


def _error_of(error: OSError) -> type[UserError]:
    return NoRoomError if error.errno in _FULL else UserError


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _is_verified(path: Path, size: int) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return found.st_size == size and found.st_mtime_ns == _VERIFIED_NS
