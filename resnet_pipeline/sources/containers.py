"""What holds a source's files: a folder or an archive."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from resnet_pipeline.sources.columns import Members
from resnet_pipeline.sources.members import Member
from resnet_pipeline.storage.base import Storage


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

    def members(self) -> Members:
        """List the regular files; UserError for what can't be read or could write outside of it."""

    def folders(self) -> list[str]:
        """Return the folders that are listed as such; of a folder on this machine, those that hold nothing.

        Known after ``members()``.
        """

    def others(self) -> list[tuple[str, str]]:
        """Return the names of what is neither file nor folder, with the reason; known after ``members()``."""

    def read(self, members: Iterable[Member]) -> Iterator[bytes]:
        """Yield the contents of members, which are in the order of ``members()``; each is read whole."""
