"""Zip files as containers: listed by their directory, a member inflated to its declared size and no further."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.names import escaped
from resnet_pipeline.sources.columns import Members
from resnet_pipeline.sources.members import Archive, Member, Zipped, address_of, check_name, clean, damaged
from resnet_pipeline.storage.base import Storage

_ZIP_HEADER, _ZIP_MEMBER = 30, b"PK\3\4"
_WINDOWS = 0  # a zip file's creating system: MS-DOS, which Windows' programs say
_SLACK = 512  # bytes


class Zip(Archive):
    """A zip file."""

    in_sequence = False

    def members(self) -> Members:
        """List the members in the order of the file's directory."""
        found = Members()
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

    def read(self, members: Iterable[Member]) -> Iterator[bytes]:
        """Yield the members' contents."""
        return (unzip(self.storage, member) for member in members)

    def _check_beginning(self, file: BinaryIO, archive: zipfile.ZipFile) -> None:
        first = min((info.header_offset for info in archive.infolist()), default=0)
        file.seek(0)
        if first and file.read(4) == _ZIP_MEMBER:
            raise RefusedError(
                f"archive {self.address} is refused: another zip file stands before the one that its end describes; "
                "unpack both into a folder"
            )


def unzip(storage: Storage, member: Member) -> bytes:
    """Return the content of a zip file's member, read by its local header; RefusedError if it is damaged.

    The header's name and extra fields may be longer than the directory's.
    """
    zipped = member.zipped
    assert zipped is not None, "every member of a zip file is"
    guess = _ZIP_HEADER + len(member.name.encode()) + 64
    with damaged(address_of(storage, member.file), member.name):
        if (
            zipped.stored > member.size + member.size // 8 + _SLACK
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
