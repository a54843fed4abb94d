"""What a source holds, whatever its layout: entries with split and class, and how their bytes are read."""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np

from resnet_pipeline.errors import RefusedError, UserError
from resnet_pipeline.names import composed
from resnet_pipeline.sources.archives import read_member
from resnet_pipeline.sources.columns import hashes, repeated
from resnet_pipeline.sources.entries import UNLABELLED, Entries, Entry
from resnet_pipeline.sources.objects import AnnotatedImage
from resnet_pipeline.storage.base import Storage

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ignored:
    """A file of the source that is no part of the dataset, and why; or a folder of so many of them."""

    file: str
    reason: str
    files: int = 1


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
    entries: Entries
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
        return self.objects is None or self.entries.labels.texts != [UNLABELLED]

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
    entries, known = catalogue.entries, set(catalogue.classes)
    training = any(split == "train" for split, _ in entries.kinds())
    # only those of a class that is not known, and with a key whose hash stands twice, are looked at one by one
    unknown = entries.numbers_of_labels({label for label in entries.labels.texts if label not in known | {UNLABELLED}})
    suspect = np.union1d(unknown, repeated(hashes(entries.keys())))
    seen: dict[str, str] = {}
    for entry in entries.part(suspect):
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
    labels = set(catalogue.entries.labels.texts) | set(catalogue.classes)
    forms = Counter(map(composed, labels))
    one = {label: composed(label) for label in labels if forms[composed(label)] > 1}
    if not one:
        return catalogue
    for name in sorted(set(one.values())):
        _log.warning("class %s is written in two ways, as Unicode's NFC and NFD: taken as one class", name)
    return replace(
        catalogue,
        entries=Entries(replace(e, label=one[e.label]) if e.label in one else e for e in catalogue.entries),
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
    entries = catalogue.entries
    if len(entries.numbers_of("val")):
        raise UserError(f"--holdout {images}: {catalogue.address} has a val split of its own; leave --holdout out")
    training = entries.numbers_of("train")
    if images >= len(training):
        raise UserError(f"--holdout {images}: {catalogue.address} has only {len(training)} training images")

    def digest(number: int) -> bytes:
        return hashlib.sha256(entries.key(number).encode()).digest()

    chosen = set(heapq.nsmallest(images, map(int, training), key=digest))
    entries = Entries(replace(e, split="val") if n in chosen else e for n, e in enumerate(entries))
    emptied = set(catalogue.classes) - {label for split, label in entries.kinds() if split == "train"}
    if emptied:
        raise UserError(f"--holdout {images} leaves class {min(emptied)!r} without training images; hold out fewer")
    return replace(catalogue, entries=entries)
