"""Containers of files: a folder, a tar or zip file, a compressed tar file; listed and read, never unpacked.

Any process that opens the storage can read a member with a place of its own (a file, a range of a tar or zip file). A
compressed tar file has no such places: it can only be read from its beginning on.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Protocol, cast

from resnet_pipeline.errors import RefusedError, UserError
from resnet_pipeline.names import escaped
from resnet_pipeline.sources.file_views import HashingReader
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.local import LocalStorage

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")

_DECOMPRESSORS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open
}  # fmt: skip
_TAR_ERRORS = (
    tarfile.TarError,
    EOFError,
    OSError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
    RecursionError,
)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, NotImplementedError)
_BLOCK = 512
_ZIP_HEADER, _ZIP_MEMBER = 30, b"PK\3\4"
_WINDOWS = 0  # a zip file's creating system: MS-DOS, which Windows' programs say
_HEADER_BYTES = 2**20  # of a tar file's member: its long names and the rest that pax headers hold
_TABLE_BYTES = 2**26  # CIFAR-10's batches, the largest, have 31 MB


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


class Container(Protocol):
    """Files by name, in an order of their own."""

    @property
    def address(self) -> str:
        """The container as the user named it."""

    @property
    def storage(self) -> Storage:
        """Where its members' files lie."""

    @property
    def in_sequence(self) -> bool:
        """Whether it can only be read from its beginning on."""

    def members(self) -> list[Member]:
        """List the regular files; UserError for what can't be read or could write outside of it."""

    def folders(self) -> list[str]:
        """Return the folders that are listed as such; of a folder on this machine, those that hold nothing.

        Known after ``members()``.
        """

    def others(self) -> list[tuple[str, str]]:
        """Return the names of what is neither file nor folder, with the reason; known after ``members()``."""

    def read(self, members: Sequence[Member]) -> Iterator[bytes]:
        """Yield the contents of members, which are in the order of ``members()``; each is read whole."""


def address_of(storage: Storage, name: str) -> str:
    """Return a file's address as a user writes it."""
    return f"{storage.url.rstrip('/')}/{name}" if name else storage.url


def open_container(storage: Storage, name: str) -> Container:
    """Return the archive ``name`` of a storage, or all of the storage if the name is empty."""
    lower = name.lower()
    if not name:
        return Folder(storage)
    if lower.endswith(".zip"):
        return Zip(storage, name)
    if lower.endswith(ARCHIVES):
        return Tar(storage, name)
    raise UserError(f"source {address_of(storage, name)} is neither a folder nor an archive ({', '.join(ARCHIVES)})")


def read_tables(container: Container, members: Sequence[Member]) -> Iterator[bytes]:
    """Yield the contents of members that tables or batches of a layout are read from; RefusedError for a huge one."""
    for member in members:
        if member.size > _TABLE_BYTES:
            raise RefusedError(f"{container.address}: {member.name} of {member.size:,} bytes is too large to be read")
    return container.read(members)


def read_member(storage: Storage, member: Member) -> bytes:
    """Return a member's content from its place; UserError where it is damaged or has changed since it was listed.

    Never more than the ``size`` that was declared for it is read or inflated.
    """
    if member.zipped:
        return _unzip(storage, member, member.zipped)
    return _whole(storage, member, storage.read(member.file, member.offset, _stored_size(member)))


class Folder:
    """All files of a storage."""

    in_sequence = False

    def __init__(self, storage: Storage) -> None:
        self.storage, self.address = storage, storage.url
        self._empty: list[str] = []
        self._others: list[tuple[str, str]] = []

    def members(self) -> list[Member]:
        """List all files, by name."""
        if isinstance(self.storage, LocalStorage):
            listing = self.storage.listing()
            self._empty = [escaped(name) for name in listing.empty]
            self._others = [(escaped(name), reason) for name, reason in listing.others]
            files = listing.files
        else:
            files = self.storage.files()
        return [Member(escaped(f.name), f.name, 0, f.size) for f in files]

    def folders(self) -> list[str]:
        """Return the empty folders; only a folder on this machine can have any."""
        return self._empty

    def others(self) -> list[tuple[str, str]]:
        """Return broken links, and what else is no file."""
        return self._others

    def read(self, members: Sequence[Member]) -> Iterator[bytes]:
        """Yield the files' contents."""
        return (read_member(self.storage, member) for member in members)


class Tar:
    """A tar file, compressed or not."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage, self.name, self.address = storage, name, address_of(storage, name)
        lower = name.lower()
        self._decompress = next((d for suffix, d in _DECOMPRESSORS.items() if lower.endswith(suffix)), None)
        self.in_sequence = self._decompress is not None
        self._folders: list[str] = []

    def members(self) -> list[Member]:
        """List the members in their order."""
        with self._open() as file:
            found, self._folders = list_tar(file, self.name, self.address)
        return found

    def folders(self) -> list[str]:
        """Return the folders that were listed; known after ``members()``."""
        return self._folders

    def others(self) -> list[tuple[str, str]]:
        """Return nothing: an archive with a link or a device is refused."""
        return []

    def read(self, members: Sequence[Member]) -> Iterator[bytes]:
        """Yield the members' contents."""
        if not self.in_sequence:
            yield from (read_member(self.storage, member) for member in members)
            return
        with self._open() as file:
            place, data = -1, b""
            for member in members:
                if member.offset != place:  # else a hard link to the one before
                    with damaged(self.address, member.name):
                        file.seek(member.offset)
                        place, data = member.offset, file.read(_stored_size(member))
                yield _whole(self.storage, member, data)

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        with self.storage.open(self.name) as raw:
            if self._decompress is None and isinstance(self.storage, LocalStorage):
                yield raw
            elif self._decompress is None:  # a request for each header would take far longer than reading it all
                yield cast(BinaryIO, HashingReader(raw))
            else:
                with self._decompress(raw, "rb") as file:
                    yield file


class Zip:
    """A zip file."""

    in_sequence = False

    def __init__(self, storage: Storage, name: str) -> None:
        self.storage, self.name, self.address = storage, name, address_of(storage, name)
        self._folders: list[str] = []

    def members(self) -> list[Member]:
        """List the members in the order of the file's directory."""
        found = []
        self._folders = []
        with damaged(self.address), self.storage.open(self.name) as file, zipfile.ZipFile(file) as archive:
            self._check_beginning(file, archive)
            slashes = any("/" in info.filename for info in archive.infolist())
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                check_name(self.address, info.filename, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
                name = info.filename
                if info.create_system == _WINDOWS or not slashes:  # where a backslash stands between folders
                    name = name.replace("\\", "/")
                if name.endswith("/"):
                    self._folders.append(clean(name))
                    continue
                if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise RefusedError(
                        f"archive {self.address} is refused: {escaped(name)} is encrypted or packed in an unusual way; "
                        "zip it with deflate"
                    )
                zipped = Zipped(info.compress_type, info.compress_size, info.CRC)
                found.append(Member(clean(name), self.name, info.header_offset, info.file_size, zipped))
        return found

    def folders(self) -> list[str]:
        """Return the folders that were listed; known after ``members()``."""
        return self._folders

    def others(self) -> list[tuple[str, str]]:
        """Return nothing: an archive with a link or a device is refused."""
        return []

    def read(self, members: Sequence[Member]) -> Iterator[bytes]:
        """Yield the members' contents."""
        return (read_member(self.storage, member) for member in members)

    def _check_beginning(self, file: BinaryIO, archive: zipfile.ZipFile) -> None:
        first = min((info.header_offset for info in archive.infolist()), default=0)
        file.seek(0)
        if first and file.read(4) == _ZIP_MEMBER:
            raise RefusedError(
                f"archive {self.address} is refused: another zip file stands before the one that its end describes; "
                "unpack both into a folder"
            )


def list_tar(file: BinaryIO, name: str, address: str, start: int = 0) -> tuple[list[Member], list[str]]:
    """Return the regular files and the folders of a tar file, which begins at ``start`` of the stored file ``name``."""
    found: list[Member] = []
    folders: list[str] = []
    by_name: dict[str, Member] = {}
    for info in walk_tar(file, address):
        if info.isdir():
            folders.append(clean(info.name))
        elif info.islnk():
            by_name = by_name or {member.name: member for member in found}
            found.append(replace(_linked(by_name, info, address), name=clean(info.name)))
        else:
            found.append(Member(clean(info.name), name, start + info.offset_data, info.size, pieces=_pieces(info)))
        if by_name:
            by_name[found[-1].name] = found[-1]
    if by_name:
        found.sort(key=lambda member: member.offset)  # what can only be read forwards has a link beside its file
    return found, folders


def walk_tar(file: BinaryIO, address: str) -> Iterator[tarfile.TarInfo]:
    """Yield the files, hard links and folders of a tar file as they come; ``file`` need only seek forwards.

    Raises RefusedError for a damaged archive, for one that goes on after its end, for a symbolic link or device, and
    for a name that points outside.
    """
    end, last = 0, "its beginning"
    with damaged(address), tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # 1.3 million of them would stay in memory
            end = tar.offset  # of the next header
            last = escaped(info.name)
            check_name(address, info.name, plain=info.isreg() or info.isdir() or info.islnk())
            yield info
        # tarfile takes a missing end, and a damaged header, for the end
        file.seek(end)
        if file.read(_BLOCK) != b"\0" * _BLOCK:
            raise RefusedError(f"archive {address} can't be read: it is cut off or damaged after {last}")
        while rest := file.read(2**20):  # to the end, where a decompressor finds its checksum
            if rest.count(0) != len(rest):
                raise RefusedError(
                    f"archive {address} is refused: it goes on after its end, which follows {last}, as archives "
                    "put one after the other do; unpack them into a folder, or join them with tar --concatenate"
                )


def _linked(by_name: dict[str, Member], info: tarfile.TarInfo, address: str) -> Member:
    target = by_name.get(clean(info.linkname))
    if target is None:
        raise RefusedError(
            f"archive {address} is refused: member {escaped(info.name)} is a link to {escaped(info.linkname)}, which "
            "does not stand before it"
        )
    return target


def _pieces(info: tarfile.TarInfo) -> tuple[tuple[int, int], ...] | None:
    """Return what is stored of a sparse member; None of any other. ValueError if that lies outside of it."""
    sparse: list[tuple[int, int]] | None = info.sparse  # type: ignore[assignment]
    if sparse is None:
        return None
    sparse = [(offset, size) for offset, size in sparse if size]  # GNU's header has places for four, empty ones too
    at = 0
    for offset, size in sparse:
        if not at <= offset <= offset + size <= info.size:
            raise tarfile.ReadError(f"{escaped(info.name)} has a damaged map of its holes")
        at = offset + size
    return tuple(sparse)


class _Header(tarfile.TarInfo):
    """A tar header; those that only say more of the next one are read whole, so they have a limit."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.size < 0 or (self.type in _MORE_OF_THE_NEXT and self.size > _HEADER_BYTES):
            raise tarfile.ReadError(f"a header says {self.size:,} bytes")
        found: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return found


_MORE_OF_THE_NEXT = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip


def clean(name: str) -> str:
    """Return a member's name without ``./`` and doubled slashes, fit to be shown."""
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
    except (*_TAR_ERRORS, *_ZIP_ERRORS) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        at = f" at {member}" if member else ""
        raise RefusedError(f"archive {address} can't be read{at}: {reason}") from None


def _stored_size(member: Member) -> int:
    return member.size if member.pieces is None else sum(size for _, size in member.pieces)


def _whole(storage: Storage, member: Member, data: bytes) -> bytes:
    """Return a member's content of what is stored of it: holes are zeros."""
    if len(data) != _stored_size(member):
        raise UserError(f"{address_of(storage, member.name)} changed while it was being staged; start again")
    if member.pieces is None:
        return data
    content, at = bytearray(member.size), 0
    for offset, size in member.pieces:
        content[offset : offset + size] = data[at : at + size]
        at += size
    return bytes(content)


def _unzip(storage: Storage, member: Member, zipped: Zipped) -> bytes:
    """Read a member by its local header, whose name and extra fields may be longer than the directory's."""
    guess = _ZIP_HEADER + len(member.name.encode()) + 64
    with damaged(address_of(storage, member.file), member.name):
        if (
            zipped.stored > member.size + member.size // 8 + _BLOCK
        ):  # what can't be packed takes hardly more than itself
            raise zipfile.BadZipFile("it takes more bytes than its content has")
    data = storage.read(member.file, member.offset, guess + zipped.stored)
    with damaged(address_of(storage, member.file), member.name):
        if data[:4] != _ZIP_MEMBER:
            raise zipfile.BadZipFile("no member begins there")
        name_size, extra_size = struct.unpack_from("<HH", data, 26)
        start = _ZIP_HEADER + name_size + extra_size
        if start + zipped.stored > len(data):
            data = storage.read(member.file, member.offset, start + zipped.stored)
        packed = memoryview(data)[start : start + zipped.stored]
        content = _inflated(packed, member.size) if zipped.method == zipfile.ZIP_DEFLATED else bytes(packed)
        if len(content) != member.size or zlib.crc32(content) != zipped.crc:
            raise zipfile.BadZipFile("its content does not match its checksum")
    return content


def _inflated(packed: memoryview, size: int) -> bytes:
    """Return what a deflated member inflates to, at most one byte more than its declared size."""
    return zlib.decompressobj(-15).decompress(packed, size + 1)
