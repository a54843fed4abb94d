"""What a source holds, whatever its layout: entries with split and class, and how their bytes are read."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from resnet_pipeline.errors import RefusedError, UserError
from resnet_pipeline.names import composed
from resnet_pipeline.sources.archives import read_member
from resnet_pipeline.sources.members import Member
from resnet_pipeline.sources.objects import AnnotatedImage
from resnet_pipeline.storage.base import Storage

_log = logging.getLogger(__name__)

UNLABELLED = ""
"""The class of images whose class is not known (ILSVRC's test images); their label is -1."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """A file of the source that is no part of the dataset, and why; or a folder of so many of them."""

    file: str
    reason: str
    files: int = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A file with its place in the dataset; ``below`` is its path below its class's folder, if it has one there."""

    member: Member
    split: str
    label: str
    below: str = ""

    @property
    def key(self) -> str:
        """The sample's name, kept in the index and in score files: ``split/class/name``."""
        name = self.below or PurePosixPath(self.member.name).name
        return f"{self.split}/{self.label}/{name}" if self.label else f"{self.split}/{name}"


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """A source's entries in its order.

    ``layout`` names how the source is laid out, ``classes`` are in the order of their labels, ``class_words`` says what
    they are called, and ``md5`` holds the archives' published MD5s that were found right. ``stream`` yields the
    contents of entries, which are in the catalogue's order, of a source that can only be read in sequence; without it
    each member is read from its own place in ``storage``.

    What else the source holds is accounted for: ``hidden`` files that systems leave, and ``ignored`` ones.
    ``unsplit`` says that the source knows of no splits, so that all are entries of ``train``.

    ``objects`` are what the source's annotations say of images, by their members' names; None of a source without any.
    ``category_ids`` are the classes' numbers in result files of COCO's format, by default from 1 on.
    """

    layout: str
    address: str
    storage: Storage
    entries: list[Entry]
    classes: list[str]
    class_words: dict[str, str] = field(default_factory=dict)
    md5: dict[str, str] = field(default_factory=dict)
    hidden: list[Ignored] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)
    unsplit: bool = False
    objects: Mapping[str, AnnotatedImage] | None = None
    category_ids: list[int] = field(default_factory=list)
    stream: Callable[[Sequence[Entry]], Iterator[bytes]] | None = None

    @property
    def labelled(self) -> bool:
        """Whether images have a class themselves, and not their objects alone."""
        return self.objects is None or any(entry.label != UNLABELLED for entry in self.entries)

    def read(self, entries: Sequence[Entry]) -> Iterator[bytes]:
        """Yield the contents of entries, which are in the catalogue's order."""
        if self.stream is not None:
            return self.stream(entries)
        return (read_member(self.storage, entry.member) for entry in entries)


def checked(catalogue: Catalogue) -> Catalogue:
    """Return the catalogue, in which each class is written in one way.

    Raises RefusedError if a class lacks training images, or two entries have one key.
    """
    catalogue = _composed(catalogue)
    known = set(catalogue.classes)
    training = any(entry.split == "train" for entry in catalogue.entries)
    seen: dict[str, str] = {}
    for entry in catalogue.entries:
        if entry.label not in known and entry.label != UNLABELLED:
            lacks = "has no images in train" if training else "is none of the classes that its table names"
            raise RefusedError(f"{catalogue.address}: class {entry.label!r} of {entry.split} {lacks}")
        key = entry.key
        if key in seen:
            raise RefusedError(f"{catalogue.address} holds {key} twice: {seen[key]} and {entry.member.name}")
        seen[key] = entry.member.name
    return catalogue


def _composed(catalogue: Catalogue) -> Catalogue:
    """Return a catalogue in which a class that is written both composed (NFC) and decomposed (NFD) is one."""
    labels = {entry.label for entry in catalogue.entries} | set(catalogue.classes)
    forms = Counter(map(composed, labels))
    one = {label: composed(label) for label in labels if forms[composed(label)] > 1}
    if not one:
        return catalogue
    for name in sorted(set(one.values())):
        _log.warning("class %s is written in two ways, as Unicode's NFC and NFD: taken as one class", name)
    return replace(
        catalogue,
        entries=[replace(e, label=one[e.label]) if e.label in one else e for e in catalogue.entries],
        classes=sorted({one.get(label, label) for label in catalogue.classes}),
    )


def ignored_of(files: Iterable[Ignored], most: int = 1_000) -> list[Ignored]:
    """Return what was ignored, by name; if there are very many, one for each folder and reason."""
    listed = sorted(files, key=lambda ignored: ignored.file)
    if len(listed) <= most:
        return listed
    folders = Counter((f"{PurePosixPath(ignored.file).parent}/", ignored.reason) for ignored in listed)
    return [Ignored(folder, reason, count) for (folder, reason), count in sorted(folders.items())]


def with_holdout(catalogue: Catalogue, images: int) -> Catalogue:
    """Return a catalogue whose split ``val`` is ``images`` of the training images.

    Which ones is a function of their keys alone: those whose keys have the smallest SHA-256. UserError if there is a
    val split already, if a class would keep no image, and for 0 images of a source that knows of no splits.

    Example: ``with_holdout(read_catalogue(storage), 5000)``
    """
    if not images:
        if catalogue.unsplit:
            named = ", ".join(catalogue.classes[:3]) + (", …" if len(catalogue.classes) > 3 else "")
            raise UserError(
                f"{catalogue.address} has folders of {len(catalogue.classes)} classes ({named}), but no train and val; "
                "say with --holdout N how many images are for validation"
            )
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
