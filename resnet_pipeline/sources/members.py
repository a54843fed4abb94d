"""Files of a source: a member with its place, and what archives of them have in common."""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from resnet_pipeline.errors import RefusedError, UserError
from resnet_pipeline.names import escaped
from resnet_pipeline.storage.base import Storage

_ERRORS = (
    # of tar files, compressed or not
    tarfile.TarError,
    EOFError,
    OSError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
    RecursionError,
    # of zip files
    zipfile.BadZipFile,
    struct.error,
    NotImplementedError,
)
"""What the readers of damaged archives raise."""


@dataclass(frozen=True, slots=True)
class Zipped:
    """How a zip file keeps a member: method 0 (stored) or 8 (deflated), bytes there, CRC-32 of the content."""

    method: int
    stored: int
    crc: int


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a source: its name (``/`` between folders), and ``size`` bytes from ``offset`` of a stored ``file``.

    ``name`` is fit to be shown (``names.escaped``), ``file`` is as the storage has it. In a zip file ``offset`` is that
    of its header, in a compressed tar file that in what comes out of decompression. Of a sparse member of a tar file
    only ``pieces`` are stored, one after the other: (offset, size) in its content.
    """

    name: str
    file: str
    offset: int
    size: int
    zipped: Zipped | None = None
    pieces: tuple[tuple[int, int], ...] | None = None


class Archive:
    """What tar and zip files have in common."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage, self.name, self.address = storage, name, address_of(storage, name)
        self._folders: list[str] = []

    def folders(self) -> list[str]:
        """Return the folders that were listed; known after ``members()``."""
        return self._folders

    def others(self) -> list[tuple[str, str]]:
        """Return nothing: an archive with a link or a device is refused."""
        return []


def address_of(storage: Storage, name: str) -> str:
    """Return a file's address as a user writes it."""
    return f"{storage.url.rstrip('/')}/{name}" if name else storage.url


def clean(name: str) -> str:
    """Return a member's name without ``./`` and doubled slashes, fit to be shown.

    >>> clean("./train//a/1.jpg")
    'train/a/1.jpg'
    """
    return escaped(PurePosixPath(name).as_posix())


def check_name(address: str, name: str, *, plain: bool) -> None:
    """Raise RefusedError for a member that would lie outside of its archive, or is neither file nor folder."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if name.startswith(("/", "\\")) or ".." in parts or (parts and parts[0].endswith(":")):
        raise RefusedError(f"archive {address} is refused: member {escaped(name)!r} points outside of it")
    if not plain:
        raise RefusedError(
            f"archive {address} is refused: member {escaped(name)!r} is a symbolic link or a device, not a file"
        )


@contextmanager
def damaged(address: str, member: str = "") -> Iterator[None]:
    """Raise what the archive's reader raises as RefusedError, with the archive's address."""
    try:
        yield
    except _ERRORS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        at = f" at {member}" if member else ""
        raise RefusedError(f"archive {address} can't be read{at}: {reason}") from None


def stored_size(member: Member) -> int:
    """Return how many bytes of a member are stored; of a sparse one fewer than it has."""
    return member.size if member.pieces is None else sum(size for _, size in member.pieces)


def content_of(storage: Storage, member: Member, data: bytes) -> bytes:
    """Return a member's content of what is stored of it: holes are zeros."""
    if len(data) != stored_size(member):
        raise UserError(f"{address_of(storage, member.name)} changed while it was being staged; start again")
    if member.pieces is None:
        return data
    content, at = bytearray(member.size), 0
    for offset, size in member.pieces:
        content[offset : offset + size] = data[at : at + size]
        at += size
    return bytes(content)
