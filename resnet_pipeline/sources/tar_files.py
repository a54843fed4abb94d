"""Tar files as containers, compressed or not: listed header by header, read by a member's place."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO, cast

import numpy as np

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.names import escaped
from resnet_pipeline.sources.columns import Members
from resnet_pipeline.sources.file_views import HashingReader
from resnet_pipeline.sources.members import Archive, Member, check_name, clean, content_of, damaged, stored_size
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.local import LocalStorage

_DECOMPRESSORS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open
}  # fmt: skip
_BLOCK = 512
_HEADER_BYTES = 2**20  # of a tar file's member: its long names and the rest that pax headers hold


def read_stored(storage: Storage, member: Member) -> bytes:
    """Return the content of a member that is stored as it is: of a folder, or of a tar file that is not compressed."""
    return content_of(storage, member, storage.read(member.file, member.offset, stored_size(member)))


class Tar(Archive):
    """A tar file, compressed or not."""

    def __init__(self, storage: Storage, name: str) -> None:
        super().__init__(storage, name)
        lower = name.lower()
        self._decompress = next((d for suffix, d in _DECOMPRESSORS.items() if lower.endswith(suffix)), None)
        self.in_sequence = self._decompress is not None

    def members(self) -> Members:
        """List the members in their order."""
        with self._open() as file:
            found, self._folders = list_tar(file, self.name, self.address)
        return found

    def read(self, members: Iterable[Member]) -> Iterator[bytes]:
        """Yield the members' contents."""
        if not self.in_sequence:
            yield from (read_stored(self.storage, member) for member in members)
            return
        with self._open() as file:
            place, data = -1, b""
            for member in members:
                if member.offset != place:  # else a hard link to the one before
                    with damaged(self.address, member.name):
                        file.seek(member.offset)
                        place, data = member.offset, file.read(stored_size(member))
                yield content_of(self.storage, member, data)

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        with self.storage.open(self.name) as raw:
            if self._decompress is None and isinstance(self.storage, LocalStorage):
                yield raw
            elif self._decompress is None:  # a request for each header would take far longer than reading it all
                yield cast(BinaryIO, HashingReader(raw, hashed=False))
            else:
                with self._decompress(raw, "rb") as file:
                    yield file


def list_tar(file: BinaryIO, name: str, address: str, start: int = 0) -> tuple[Members, list[str]]:
    """Return the regular files and the folders of a tar file, which begins at ``start`` of the stored file ``name``."""
    found = Members()
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
        # what can only be read forwards has a link beside its file
        found = found.taken(np.argsort(found.offsets, kind="stable"))
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
