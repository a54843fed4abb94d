"""What a source holds, whatever its layout: entries with split and class, and how their bytes are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from resnet_pipeline.errors import RefusedError, UserError
from resnet_pipeline.sources.archives import Member, read_member
from resnet_pipeline.storage.base import Storage

UNLABELLED = ""
"""The class of images whose class is not known (ILSVRC's test images); their label is -1."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file with its place in the dataset."""

    member: Member
    split: str
    label: str

    @property
    def key(self) -> str:
        """The sample's name, kept in the index and in score files: ``split/class/name``."""
        name = PurePosixPath(self.member.name).name
        return f"{self.split}/{self.label}/{name}" if self.label else f"{self.split}/{name}"


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A source's entries in its order.

    ``layout`` names how the source is laid out, ``classes`` are in the order of their labels, ``class_words`` says what
    they are called, and ``md5`` holds the archives' published MD5s that were found right. ``stream`` yields the
    contents of entries, which are in the catalogue's order, of a source that can only be read in sequence; without it
    each member is read from its own place in ``storage``.
    """

    layout: str
    address: str
    storage: Storage
    entries: list[Entry]
    classes: list[str]
    class_words: dict[str, str] = field(default_factory=dict)
    md5: dict[str, str] = field(default_factory=dict)
    stream: Callable[[Sequence[Entry]], Iterator[bytes]] | None = None

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        """Yield the contents of entries, which are in the catalogue's order."""
        if self.stream is not None:
            return self.stream(entries)
        return (read_member(self.storage, entry.member) for entry in entries)


def checked(catalogue: Catalogue) -> Catalogue:
    """Return the catalogue; RefusedError if a class lacks training images, or two entries have one key."""
    known = set(catalogue.classes)
    seen: set[str] = set()
    for entry in catalogue.entries:
        if entry.label not in known and entry.label != UNLABELLED:
            raise RefusedError(f"{catalogue.address}: class {entry.label!r} of {entry.split} has no images in train")
        key = entry.key
        if key in seen:
            raise RefusedError(f"{catalogue.address} holds {key} twice")
        seen.add(key)
    return catalogue


def with_holdout(catalogue: Catalogue, images: int) -> Catalogue:
    """Return a catalogue whose split ``val`` is ``images`` of the training images.

    They are those whose keys have the smallest SHA-256, so the choice depends on the keys alone. Raises UserError if
    there is a val split already, or if a class would keep no image.
    """
    if not images:
        return catalogue
    if any(entry.split == "val" for entry in catalogue.entries):
        raise UserError(f"--holdout {images}: {catalogue.address} has a val split of its own; leave --holdout out")
    training = [entry.key for entry in catalogue.entries if entry.split == "train"]
    if images >= len(training):
        raise UserError(f"--holdout {images}: {catalogue.address} has only {len(training)} training images")
    chosen = set(sorted(training, key=lambda key: hashlib.sha256(key.encode()).digest())[:images])
    entries = [
        replace(entry, split="val") if entry.split == "train" and entry.key in chosen else entry
        for entry in catalogue.entries
    ]
    emptied = set(catalogue.classes) - {entry.label for entry in entries if entry.split == "train"}
    if emptied:
        raise UserError(f"--holdout {images} leaves class {min(emptied)!r} without training images; hold out fewer")
    return replace(catalogue, entries=entries)
