"""Tables that say what class each image of a flat folder has: a CSV of file and class, ILSVRC's and Tiny ImageNet's.

A row of ``val_annotations.txt`` or of a CSV names a file and its class, among other things; a line of
``ILSVRC2012_validation_ground_truth.txt`` is the number of the class in ``meta.mat`` for the image of that place, and a
line of a list of classes the class itself. Which of these a table is, is seen by what it holds.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.names import escaped
from resnet_pipeline.sources.archives import read_tables
from resnet_pipeline.sources.columns import Members
from resnet_pipeline.sources.containers import Container
from resnet_pipeline.sources.members import Member

META = "meta.mat"
CLASS_LISTS = ("LOC_synset_mapping.txt", "synset_words.txt", "wnids.txt", "classes.txt")
"""Files that name all classes in the order of their labels, a line each; what follows the name are its words."""

_ENDINGS = (".txt", ".csv", ".tsv")
_MOST = 40  # tables of a source that are looked at
_COLUMNS = 3  # the first ones of a table are looked at for file and class


@dataclass(frozen=True)
class Tables:
    """The tables of a source by name, as text, and the classes that ``meta.mat`` numbers, if it is there."""

    texts: Mapping[str, str]
    numbers: Mapping[int, str]

    def labels(self, images: Sequence[Member], known: Collection[str]) -> tuple[dict[str, str], str] | None:
        """Return the class of each image by its name, and the table that says so; None if no table does.

        ``known`` are the classes that there are. Raises RefusedError, naming the image, if a table has some and not it,
        or two classes for it, and no other table has one for each.
        """
        partial: tuple[dict[str, str], str] | None = None
        torn: str | None = None
        for table, text in self.texts.items():
            if PurePosixPath(table).name in CLASS_LISTS:
                continue
            rows = _rows(text)
            pairs = _by_name(rows, images, known) or _by_place(rows, images, known, self.numbers)
            found = dict(pairs)
            if twice := next(((image, label) for image, label in pairs if found[image] != label), None):
                torn = (
                    torn or f"{twice[0]} has two classes in {table}, {twice[1]} and {found[twice[0]]}; remove one row"
                )
                continue
            if len(found) == len(images):
                return found, table
            if found and partial is None:
                partial = found, table
        if torn:
            raise RefusedError(torn)
        if partial is None:
            return None
        without = next(image for image in images if image.name not in partial[0])
        raise RefusedError(f"{without.name} has no class in {partial[1]}; add a row for it, or remove the file")

    def class_list(self) -> tuple[list[str], dict[str, str], str] | None:
        """Return all classes in their order, what they are called, and the file that says so; None without one."""
        for table, text in self.texts.items():
            if PurePosixPath(table).name in CLASS_LISTS:
                lines = [line.partition(" ") for line in text.replace("\t", " ").splitlines() if line.strip()]
                words = {escaped(name): escaped(words.strip()) for name, _, words in lines}
                if len(words) < len(lines):
                    names = Counter(escaped(name) for name, _, _ in lines)
                    raise RefusedError(
                        f"{table} names class {names.most_common(1)[0][0]} more than once: a line is the class, in one "
                        "word, and what it is called"
                    )
                return list(words), {name: text for name, text in words.items() if text}, table
        return None


def tables_of(container: Container, members: Members, candidate: Callable[[str], bool]) -> Tables:
    """Read those of a container's members that may be tables, whose names are a ``candidate``'s."""
    may_be = members.chosen(
        lambda name: (name.lower().endswith(_ENDINGS) or PurePosixPath(name).name == META) and candidate(name)
    )
    names = {m.name for m in sorted(may_be, key=lambda m: (m.name.count("/"), m.name))[:_MOST]}
    wanted = [m for m in may_be if m.name in names]
    contents = dict(zip((m.name for m in wanted), read_tables(container, wanted), strict=True))
    meta = next((name for name in contents if PurePosixPath(name).name == META), None)
    numbers = {} if meta is None else synsets(contents.pop(meta), f"{container.address}: {meta}")[0]
    return Tables({name: data.decode("utf-8-sig", "replace") for name, data in contents.items()}, numbers)


def synsets(meta: bytes, where: str) -> tuple[dict[int, str], dict[str, str], list[str]]:
    """Return what ``meta.mat`` says: the class of each number, what each is called, and those that have images."""
    numbers: dict[int, str] = {}
    words: dict[str, str] = {}
    leaves = []
    try:
        table = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        columns = (table[name] for name in ("ILSVRC2012_ID", "WNID", "words", "num_children"))
        for number, wnid, text, children in zip(*columns, strict=True):
            numbers[int(number)], words[escaped(str(wnid))] = escaped(str(wnid)), escaped(str(text))
            if int(children) == 0:
                leaves.append(escaped(str(wnid)))
    except (ValueError, KeyError, TypeError, IndexError, MatReadError) as error:
        raise RefusedError(f"{where} can't be read: {error}") from None
    return numbers, words, leaves


def _rows(text: str) -> list[list[str]]:
    first = text.partition("\n")[0]
    if "\t" in first:
        rows = [line.split("\t") for line in text.splitlines()]
    elif "," in first:
        rows = list(csv.reader(io.StringIO(text)))
    elif ";" in first:  # as spreadsheets write it where a comma stands before decimals
        rows = list(csv.reader(io.StringIO(text), delimiter=";"))
    else:
        rows = [line.split() for line in text.splitlines()]
    return [[cell.strip() for cell in row[:_COLUMNS]] for row in rows if any(map(str.strip, row))]


def _by_name(rows: list[list[str]], images: Sequence[Member], known: Collection[str]) -> list[tuple[str, str]]:
    """Return each image that a row names, with or without folders and ending, and the class that the row gives it."""
    names: dict[str, str] = {}
    for image in images:
        path = PurePosixPath(image.name)
        names |= dict.fromkeys((path.stem, path.name, image.name), image.name)

    def image_of(cell: str) -> str | None:
        return names.get(escaped(cell)) or names.get(escaped(PurePosixPath(cell).name))

    hits = [[row for row in rows if len(row) > place and image_of(row[place])] for place in range(_COLUMNS)]
    place = max(range(_COLUMNS), key=lambda column: len(hits[column]))
    found = hits[place]

    def class_of(cell: str) -> str:
        first = cell.partition(" ")[0]  # Kaggle's "n02105855 12 3 450 371": a class and its box
        return escaped(cell if escaped(cell) in known else first)

    def fitting(column: int) -> int:
        return 0 if column == place else sum(len(row) > column and class_of(row[column]) in known for row in found)

    column = max(range(_COLUMNS), key=fitting)
    if not found or not fitting(column):
        return []
    return [(image_of(row[place]) or "", class_of(row[column])) for row in found if len(row) > column]


def _by_place(
    rows: list[list[str]], images: Sequence[Member], known: Collection[str], numbers: Mapping[int, str]
) -> list[tuple[str, str]]:
    """Return the classes of a table with one class a line, or its number, for the images in the order of names."""
    if len(rows) != len(images) or any(len(row) != 1 for row in rows):
        return []
    cells = [escaped(row[0]) for row in rows]
    if sorted(cells) == sorted(known):
        return []  # a list of the classes
    if not all(cell in known for cell in cells):
        cells = [numbers.get(int(cell), "") if cell.isascii() and cell.isdecimal() else "" for cell in cells]
    if not all(cell in known for cell in cells):
        return []
    return list(zip(sorted(image.name for image in images), cells, strict=True))
