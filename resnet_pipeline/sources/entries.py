"""Files with their places in a dataset; those of a whole source in columns, some seventy bytes each."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from resnet_pipeline.sources.columns import Columns, Members, Numbers, Part, Repeated
from resnet_pipeline.sources.members import Member

UNLABELLED = ""
"""The class of images whose class is not known (ILSVRC's test images); their label is -1."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file with its place in the dataset.

    ``below`` is its path below its class's folder, if it has one there: an end of the member's name.
    """

    member: Member
    split: str
    label: str
    below: str = ""

    @property
    def key(self) -> str:
        """The sample's name, kept in the index and in score files: ``split/class/name``."""
        name = self.below or self.member.name.rpartition("/")[2]
        return f"{self.split}/{self.label}/{name}" if self.label else f"{self.split}/{name}"


class Entries(Columns[Entry]):
    """Entries in columns, in the source's order."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.members, self.splits, self.labels = Members(), Repeated(), Repeated()
        self._below = array("I")  # characters of the name, 0 for none
        self.extend(entries)

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> Entries:
        """Return entries in columns, which they may be already."""
        return entries if isinstance(entries, Entries) else cls(entries)

    def append(self, entry: Entry) -> None:
        """Add an entry."""
        assert entry.member.name.endswith(entry.below), "what lies below a class's folder ends the file's name"
        self.members.append(entry.member)
        self.splits.append(entry.split)
        self.labels.append(entry.label)
        self._below.append(len(entry.below))

    def extend(self, entries: Iterable[Entry]) -> None:
        """Add entries."""
        for entry in entries:
            self.append(entry)

    def __len__(self) -> int:
        return len(self._below)

    def made(self, number: int) -> Entry:
        """Return an entry."""
        member, below = self.members.made(number), self._below[number]
        return Entry(member, self.splits[number], self.labels[number], member.name[-below:] if below else "")

    def taken(self, numbers: Numbers) -> Entries:
        """Return a copy of some entries."""
        return Entries(map(self.made, numbers.tolist()))

    def part(self, numbers: Numbers) -> Part[Entry]:
        """Return some entries, by their numbers int64 [N]."""
        return Part(self, numbers)

    def key(self, number: int) -> str:
        """Return an entry's key: faster than the entry."""
        below, name, label = self._below[number], self.members.name(number), self.labels[number]
        name = name[-below:] if below else name.rpartition("/")[2]
        return f"{self.splits[number]}/{label}/{name}" if label else f"{self.splits[number]}/{name}"

    def keys(self) -> Iterator[str]:
        """Yield all keys."""
        return map(self.key, range(len(self)))

    def numbers_of(self, split: str) -> Numbers:
        """Return the numbers of a split's entries, int64 [N], in their order."""
        return np.flatnonzero(self.splits.codes == self.splits.code(split))

    def kinds(self) -> list[tuple[str, str]]:
        """Return the (split, class) that there are, each once."""
        codes = np.unique(self.splits.codes.astype(np.uint64) << np.uint64(32) | self.labels.codes).tolist()
        return [(self.splits.texts[code >> 32], self.labels.texts[code & 0xFFFFFFFF]) for code in codes]

    def numbers_of_labels(self, labels: Collection[str]) -> Numbers:
        """Return the numbers of the entries of some classes, int64 [N]."""
        codes = [code for code, text in enumerate(self.labels.texts) if text in labels]
        return np.flatnonzero(np.isin(self.labels.codes, codes)) if codes else np.zeros(0, np.int64)
