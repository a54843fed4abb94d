"""The plain layout: ``split/class/image`` files, in a folder or an archive.

Splits are ``train``, ``val`` (or ``valid``, ``validation``, ``eval``) and ``test`` (or ``testing``), in any case.
Folders may stand around them, with other files beside. What lies deeper than a class's folder is of that class. A split
without folders of classes needs a table of labels (``labelled_files``), and a validation set alone a list of all
classes. ``class/image`` without splits is a layout too: ``--holdout`` makes the validation split.
"""

from __future__ import annotations

import logging
import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.names import hidden, is_other
from resnet_pipeline.sources.catalogue import Catalogue, Ignored, ignored_of
from resnet_pipeline.sources.columns import Members, Part, missing
from resnet_pipeline.sources.containers import Container
from resnet_pipeline.sources.entries import Entries, Entry
from resnet_pipeline.sources.labelled_files import CLASS_LISTS, Tables, tables_of
from resnet_pipeline.sources.members import Member

_log = logging.getLogger(__name__)

WANTED = "images in train/<class>/* and val/<class>/*, or <class>/* with --holdout"

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_ALSO = {"training": "train", "eval": "val", "evaluation": "val", "testing": "test"}
"""Names that count if none of the first kind is there for the split."""

_FLAT = ("images", "image", "imgs", "img", "jpegimages")
"""Folders that hold the images of a split without being a class: Tiny ImageNet's ``val/images``."""


def image_folder(container: Container, members: Members) -> Catalogue | None:
    """Return the catalogue, None if there are neither splits nor folders of classes.

    Raises RefusedError if a class folder has no images, or more than one folder could be the dataset.
    """
    images = members.part(lambda name: not hidden(name) and not is_other(name))
    base = _base(images, "train", below=2, address=container.address)
    if base is None:
        base = _base(images, "val", below=1, address=container.address)
        if base is None:
            return _class_folders(container, members, images)
    return _Splits(container, members, images, base).catalogue()


def accounted(
    container: Container, members: Members, entries: Entries, reasons: dict[str, str]
) -> tuple[list[Ignored], list[Ignored]]:
    """Return the files that are hidden, and those that are ignored; ``reasons`` are by name, if there is a special one.

    Found are then the entries, the hidden and the ignored.
    """
    names = missing(members.names(), entries.members.names())
    rest = [(name, reasons.get(name)) for name in names] + list(container.others())
    no_place = "no image, by its name", "no place in this layout"
    unseen = (Ignored(name, "hidden, or left by a system") for name, _ in rest if hidden(name))
    ignored = (Ignored(n, reason or no_place[not is_other(n)]) for n, reason in rest if not hidden(n))
    return ignored_of(unseen), ignored_of(ignored)


class _Splits:
    """A source with folders of splits below ``base`` (empty, or with its slash)."""

    def __init__(self, container: Container, members: Members, images: Part[Member], base: str) -> None:
        self.container, self.members, self.images, self.base = container, members, images, base
        # of each folder below the base: the folders in it, and whether all that it holds lies deeper than a class
        below: dict[str, tuple[set[str], bool]] = {}
        for path in filter(None, map(self._path, map(members.name, map(int, images.numbers)))):
            if len(path) > 1:
                inside, deep = below.get(path[0], (set[str](), True))
                below[path[0]] = inside if len(inside) > 1 else inside | {path[1]}, deep and len(path) > 3
        first = {_SPLITS[folder.lower()] for folder in below if folder.lower() in _SPLITS}
        self.split_of = {folder: split for folder in sorted(below) if (split := _split(folder, first)) is not None}
        self.twice = {folder for folder in self.split_of if _stands_twice(folder, *below[folder])}
        for folder in sorted(self.twice):
            _log.info(
                "%s: the folders of %s%s lie one folder deeper; taken as its classes", container.address, base, folder
            )
        self.reasons: dict[str, str] = {}
        self.flat: dict[str, list[int]] = defaultdict(list)  # numbers of members
        self.entries, self.places = Entries(), array("q")  # the number of each entry's member

    def catalogue(self) -> Catalogue:
        self._take_class_folders()
        classes = sorted(label for split, label in self.entries.kinds() if split == "train")
        tables = self._tables() if self.flat or not classes else Tables({}, {})
        words: dict[str, str] = {}
        if not classes:
            classes, words = self._listed_classes(tables)
        self._take_flat_folders(tables, classes)
        self._check_filled(set(self.entries.kinds()), classes)
        entries = self.entries
        if self.flat:
            entries = entries.taken(np.argsort(np.frombuffer(self.places, np.int64), kind="stable"))
        hidden_files, ignored = accounted(self.container, self.members, entries, self.reasons)
        return Catalogue(
            layout="image folder",
            address=self.container.address,
            storage=self.container.storage,
            entries=entries,
            classes=classes,
            class_words=words,
            hidden=hidden_files,
            ignored=ignored,
            stream=stream_of(self.container),
        )

    def _path(self, name: str) -> list[str] | None:
        """Return a name's parts below the base, None of what lies elsewhere."""
        return name[len(self.base) :].split("/") if name.startswith(self.base) else None

    def _place(self, name: str) -> tuple[str, list[str]] | None:
        """Return the split of a file or folder and its path below that; None if it is in no split."""
        path = self._path(name)
        if path is None or path[0] not in self.split_of:
            return None
        return self.split_of[path[0]], path[2:] if path[0] in self.twice else path[1:]

    def _take(self, number: int, split: str, label: str, below: str = "") -> None:
        self.entries.append(Entry(self.members[number], split, label, below))
        self.places.append(number)

    def _take_class_folders(self) -> None:
        for number in map(int, self.images.numbers):
            name = self.members.name(number)
            place = self._place(name)
            if place is None:
                folder = (self._path(name) or [""])[0]
                beside = _ALSO.get(folder.lower())
                self.reasons[name] = f"{beside} is there beside {folder}" if beside else "lies in no split's folder"
            elif len(place[1]) < 2 or (place[0] != "train" and len(place[1]) == 2 and place[1][0].lower() in _FLAT):
                self.flat[place[0]].append(number)
            else:
                split, (label, *below) = place
                self._take(number, split, label, "/".join(below))

    def _take_flat_folders(self, tables: Tables, classes: Collection[str]) -> None:
        known = set(classes)
        for split, numbers in self.flat.items():
            labels = tables.labels([self.members[number] for number in numbers], known)
            if labels is not None:
                self.reasons[labels[1]] = "read for its labels"
            for number in numbers:
                name = self.members.name(number)
                folder = name.rpartition("/")[0].rpartition("/")[2]
                if labels is not None:
                    self._take(number, split, labels[0][name])
                elif folder in known:  # a class that is called so
                    self._take(number, split, folder)
                else:
                    self.reasons[name] = f"lies in {split} without a class, and no table names one"

    def _tables(self) -> Tables:
        def may_be(name: str) -> bool:
            place = None if hidden(name) else self._place(name)
            return not hidden(name) and (place is None or len(place[1]) < 3 - (place[0] == "train"))

        return tables_of(self.container, self.members, may_be)

    def _listed_classes(self, tables: Tables) -> tuple[list[str], dict[str, str]]:
        listed = tables.class_list()
        if listed is None:
            raise RefusedError(
                f"{self.container.address} has no images in train/<class>/; a validation set alone needs a file of all "
                f"classes ({', '.join(CLASS_LISTS)})"
            )
        classes, words, table = listed
        self.reasons[table] = "read for its classes"
        return classes, words

    def _check_filled(self, filled: set[tuple[str, str]], classes: Collection[str]) -> None:
        known = set(classes)
        folders = set(self.members.folders()) | set(self.container.folders())
        for folder in sorted(folders):
            place = None if hidden(folder) else self._place(folder)
            if place is None or not place[1]:
                continue
            split, (label, *_) = place
            if (split, label) not in filled and (split == "train" or label in known):
                raise RefusedError(
                    f"class folder {folder} of {self.container.address} holds no images; fill or remove it"
                )


def _class_folders(container: Container, members: Members, images: Part[Member]) -> Catalogue | None:
    """Return the catalogue of ``class/image`` files, None if there is no place with folders of several classes."""
    if not len(images):
        return None
    folders = {image.name.rpartition("/")[0] for image in images}
    around = os.path.commonprefix([folder.split("/") if folder else [] for folder in folders])  # noqa: RUF071
    start = sum(len(folder) + 1 for folder in around)
    classes = sorted({folder[start:].partition("/")[0] for folder in folders if folder[start:]})
    if len(classes) < 2:
        return None
    entries = Entries()
    for image in images:
        label, slash, below = image.name[start:].partition("/")
        if slash:
            entries.append(Entry(image, "train", label, below))
    hidden_files, ignored = accounted(container, members, entries, {})
    return Catalogue(
        layout="class folders",
        address=container.address,
        storage=container.storage,
        entries=entries,
        classes=classes,
        hidden=hidden_files,
        ignored=ignored,
        unsplit=True,
        stream=stream_of(container),
    )


def stream_of(container: Container) -> Callable[[Sequence[Entry]], Iterator[bytes]] | None:
    """Return what a catalogue reads a container with that has to be read in sequence; None for any other."""
    return (lambda wanted: container.read(entry.member for entry in wanted)) if container.in_sequence else None


def _stands_twice(folder: str, inside: set[str], deep: bool) -> bool:
    """Return whether a split's one folder is the split again: ``train/train/<class>``."""
    return len(inside) == 1 and deep and _alike(min(inside)) == _alike(folder)


def _alike(folder: str) -> str | None:
    return (_SPLITS | _ALSO).get(folder.lower())


def _split(folder: str, first: Collection[str]) -> str | None:
    """Return the split that a folder holds; ``first`` are those that have a folder by their usual name."""
    also = _ALSO.get(folder.lower())
    return _SPLITS.get(folder.lower()) or (also if also not in first else None)


def _base(images: Iterable[Member], split: str, *, below: int, address: str) -> str | None:
    """Return the folder around the splits, with its slash: the least deep one with ``split`` in it; None without one.

    Below the split's folder are at least ``below`` more parts of a name.
    """
    found: set[str] = set()
    depth = None
    for image in images:
        parts = image.name.split("/")
        for number, part in enumerate(parts[:-below]):
            if _alike(part) == split:
                if depth is None or number < depth:
                    depth, found = number, set()
                if number == depth:
                    found.add("".join(f"{part}/" for part in parts[:number]))
                break
    if len(found) > 1:
        first, second, *_ = sorted(found)
        raise RefusedError(f"{address} holds several datasets, {first}{split} and {second}{split}; name one of them")
    return found.pop() if found else None
