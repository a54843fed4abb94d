"""Containers of files: a folder, a tar or zip file, a compressed tar file; listed and read, never unpacked.

Any process that opens the storage can read a member with a place of its own (a file, a range of a tar or zip file). A
compressed tar file has no such places: it can only be read from its beginning on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from resnet_pipeline.errors import RefusedError, UserError
from resnet_pipeline.names import escaped
from resnet_pipeline.sources.columns import Members
from resnet_pipeline.sources.containers import Container
from resnet_pipeline.sources.members import Member, address_of
from resnet_pipeline.sources.tar_files import Tar, read_stored
from resnet_pipeline.sources.zip_files import Zip, unzip
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.local import LocalStorage

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")

_TABLE_BYTES = 2**26  # CIFAR-10's batches, the largest, have 31 MB


def open_container(storage: Storage, name: str) -> Container:
    """Return the archive ``name`` of a storage, or all of the storage if the name is empty.

    Example: ``open_container(storage_at("raw"), "images.tar")``
    """
    lower = name.lower()
    if not name:
        return Folder(storage)
    if lower.endswith(".zip"):
        return Zip(storage, name)
    if lower.endswith(ARCHIVES):
        return Tar(storage, name)
    raise UserError(f"source {address_of(storage, name)} is neither a folder nor an archive ({', '.join(ARCHIVES)})")


def read_tables(container: Container, members: Sequence[Member], *, most: int = _TABLE_BYTES) -> Iterator[bytes]:
    """Yield the contents of members that tables or batches of a layout are read from.

    RefusedError for one of more than ``most`` bytes.
    """
    for member in members:
        if member.size > most:
            raise RefusedError(f"{container.address}: {member.name} of {member.size:,} bytes is too large to be read")
    return container.read(members)


def read_member(storage: Storage, member: Member) -> bytes:
    """Return a member's content from its place; UserError if it is damaged or has changed since it was listed.

    Never more than the ``size`` that was declared for it is read or inflated.

    Example: ``read_member(storage, catalogue.entries[0].member)``
    """
    if member.zipped:
        return unzip(storage, member)
    return read_stored(storage, member)


class Folder:
    """All files of a storage."""

    in_sequence = False

    def __init__(self, storage: Storage) -> None:
        self.storage, self.address = storage, storage.url
        self._empty: list[str] = []
        self._others: list[tuple[str, str]] = []

    def members(self) -> Members:
        """List all files, by name."""
        if isinstance(self.storage, LocalStorage):
            listing = self.storage.listing()
            self._empty = [escaped(name) for name in listing.empty]
            self._others = [(escaped(name), reason) for name, reason in listing.others]
            files = listing.files
        else:
            files = self.storage.files()
        return Members(Member(escaped(f.name), f.name, 0, f.size) for f in files)

    def folders(self) -> list[str]:
        """Return the empty folders; only a folder on this machine can have any."""
        return self._empty

    def others(self) -> list[tuple[str, str]]:
        """Return broken links, and what else is no file."""
        return self._others

    def read(self, members: Iterable[Member]) -> Iterator[bytes]:
        """Yield the files' contents."""
        return (read_member(self.storage, member) for member in members)
