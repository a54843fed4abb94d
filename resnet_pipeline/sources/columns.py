"""Members of a source in columns: some fifty bytes each, where Python's objects take two hundred and fifty.

One process lists a source, and one of 14 million images has 14 million members. They behave as a list of `Member`,
each of which is made when it is asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import xxhash

from resnet_pipeline.names import original
from resnet_pipeline.sources.members import Member, Zipped

T = TypeVar("T")
Numbers = npt.NDArray[np.int64]

_MOST = 2**63 - 1
_BLOCK = 2**16


class Columns(Sequence[T], Generic[T]):
    """A sequence whose items are made of columns."""

    @abstractmethod
    def made(self, number: int) -> T:
        """Return the item of a number from 0 on."""

    @abstractmethod
    def taken(self, numbers: Numbers) -> Sequence[T]:
        """Return a copy of the items of some numbers, int64 [N], with columns of its own."""

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[T]: ...
    def __getitem__(self, number: int | slice) -> T | Sequence[T]:
        if isinstance(number, slice):
            return [self.made(n) for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self.made(number % len(self))

    def __iter__(self) -> Iterator[T]:
        return map(self.made, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Part(Columns[T]):
    """Some items of columns, by their numbers int64 [N]; nothing is copied, unless it is sent to another process."""

    def __init__(self, whole: Columns[T], numbers: Numbers) -> None:
        self.whole, self.numbers = whole, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def made(self, number: int) -> T:
        """Return the item of a number from 0 on."""
        return self.whole.made(int(self.numbers[number]))

    def taken(self, numbers: Numbers) -> Sequence[T]:
        """Return a copy of the items of some numbers, int64 [N]."""
        return self.whole.taken(self.numbers[numbers])

    def __reduce__(self) -> Any:
        return _same, (self.whole.taken(self.numbers),)


def _same(items: T) -> T:
    return items


class Repeated:
    """Texts that stand many times: a code for each, and the text of each code."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._codes = array("I")
        self._code_of: dict[str, int] = {}

    def append(self, text: str) -> None:
        """Add a text."""
        self._codes.append(self.code(text))

    def code(self, text: str) -> int:
        """Return the code of a text, which may be new."""
        code = self._code_of.setdefault(text, len(self.texts))
        if code == len(self.texts):
            self.texts.append(text)
        return code

    def __getitem__(self, number: int) -> str:
        return self.texts[self._codes[number]]

    @property
    def codes(self) -> npt.NDArray[np.uint32]:
        """The codes, uint32 [N], to be read and written; nothing can be appended while somebody has them."""
        return np.frombuffer(self._codes, np.uint32)

    def taken(self, numbers: Numbers) -> Repeated:
        """Return a copy of some of them, with the texts that these need."""
        present, codes = np.unique(self.codes[numbers], return_inverse=True)
        found = Repeated()
        for code in present.tolist():
            found.code(self.texts[code])
        found._codes.frombytes(codes.astype(np.uint32).tobytes())
        return found


class _Texts:
    """Texts that differ, in one buffer of bytes."""

    def __init__(self) -> None:
        self._buffer, self._ends = bytearray(), array("Q", [0])

    def append(self, text: str) -> None:
        self._buffer += text.encode()
        self._ends.append(len(self._buffer))

    def __getitem__(self, number: int) -> str:
        return self._buffer[self._ends[number] : self._ends[number + 1]].decode()


class Members(Columns[Member]):
    """Members of archives, or of folders; those of one sequence are all of zip files, or none is."""

    def __init__(self, members: Iterable[Member] = ()) -> None:
        self._folders, self._names, self._files = Repeated(), _Texts(), Repeated()
        self._offsets, self._sizes = array("q"), array("q")
        self._methods, self._stored, self._crcs = array("B"), array("Q"), array("I")
        self._pieces: dict[int, tuple[tuple[int, int], ...]] = {}
        for member in members:
            self.append(member)

    def append(self, member: Member) -> None:
        """Add a member; the size of one of more than 8 EiB, as a damaged archive may say, is noted as 8 EiB."""
        folder, slash, name = member.name.rpartition("/")
        if member.pieces is not None:
            self._pieces[len(self)] = member.pieces
        if (zipped := member.zipped) is not None:
            self._methods.append(zipped.method)
            self._stored.append(zipped.stored)
            self._crcs.append(zipped.crc)
        self._folders.append(folder + slash)
        self._names.append(name)
        self._files.append("" if member.file == original(member.name) else member.file)
        self._offsets.append(min(member.offset, _MOST))
        self._sizes.append(min(member.size, _MOST))

    def __len__(self) -> int:
        return len(self._sizes)

    def made(self, number: int) -> Member:
        """Return a member."""
        name = self.name(number)
        zipped = None
        if self._methods:
            zipped = Zipped(self._methods[number], self._stored[number], self._crcs[number])
        file, pieces = self._files[number] or original(name), self._pieces.get(number)
        return Member(name, file, self._offsets[number], self._sizes[number], zipped, pieces)

    def taken(self, numbers: Numbers) -> Members:
        """Return a copy of some members."""
        return Members(map(self.made, numbers.tolist()))

    @property
    def offsets(self) -> Numbers:
        """The members' offsets: int64 [N]."""
        return np.frombuffer(self._offsets, np.int64)

    @property
    def sizes(self) -> Numbers:
        """The members' sizes in bytes: int64 [N]."""
        return np.frombuffer(self._sizes, np.int64)

    def name(self, number: int) -> str:
        """Return a member's name."""
        return self._folders[number] + self._names[number]

    def names(self) -> Iterator[str]:
        """Yield all names: faster than the members."""
        return map(self.name, range(len(self)))

    def folders(self) -> list[str]:
        """Return the folders that members lie in, each once; the outermost is empty."""
        return [folder.removesuffix("/") for folder in self._folders.texts]

    def chosen(self, wanted: Callable[[str], bool]) -> list[Member]:
        """Return the members whose names are wanted: few of them."""
        return [self.made(number) for number, name in enumerate(self.names()) if wanted(name)]

    def part(self, wanted: Callable[[str], bool]) -> Part[Member]:
        """Return the same, however many they are."""
        return Part(self, np.fromiter((n for n, name in enumerate(self.names()) if wanted(name)), np.int64))


def hashes(texts: Iterable[str]) -> npt.NDArray[np.uint64]:
    """Return a hash of each text, uint64 [N]: XXH3 of 64 bits, under which two of 14 million differ.

    >>> hashes(["a", "b", "a"])[[0, 2]].tolist()
    [16629034431890738719, 16629034431890738719]
    """
    return np.fromiter((xxhash.xxh3_64_intdigest(text.encode()) for text in texts), np.uint64)


def missing(texts: Iterable[str], among: Iterable[str]) -> Iterator[str]:
    """Yield the texts that are not among others, compared by their hashes; in memory are those of the others alone.

    >>> list(missing(["a", "b", "c"], ["c", "a"]))
    ['b']
    """
    known = hashes(among)
    known.sort()
    rest = iter(texts)
    while block := list(islice(rest, _BLOCK)):
        found = hashes(block)
        places = np.searchsorted(known, found)
        there = np.zeros(len(block), bool)
        inside = places < len(known)
        there[inside] = known[places[inside]] == found[inside]
        yield from (text for text, is_there in zip(block, there.tolist(), strict=True) if not is_there)


def repeated(values: npt.NDArray[np.uint64]) -> Numbers:
    """Return the places, int64 [N], of values that stand more than once.

    >>> repeated(np.array([7, 5, 7, 6], np.uint64)).tolist()
    [0, 2]
    """
    ordered = np.sort(values)
    again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    blocks = (np.flatnonzero(np.isin(values[at : at + _BLOCK], again)) + at for at in range(0, len(values), _BLOCK))
    return np.concatenate([np.zeros(0, np.int64), *blocks])
