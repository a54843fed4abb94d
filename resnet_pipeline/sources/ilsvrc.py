"""The ILSVRC-2012 archives as image-net.org serves them, read without unpacking.

``ILSVRC2012_img_train.tar`` is a tar file of a tar file for each class, ``ILSVRC2012_img_val.tar`` one of images, whose
classes are in ``ILSVRC2012_devkit_t12.tar.gz``: ``meta.mat`` numbers the classes and
``ILSVRC2012_validation_ground_truth.txt`` has a number for each image. ``ILSVRC2012_img_test_v10102019.tar`` is taken
as split ``test``, without classes, if it is there. Without the training archive there is a validation set alone.
``ILSVRC2012_bbox_train_v2.tar.gz`` and ``ILSVRC2012_bbox_val_v3.tgz`` give boxes, of the images that they have, if they
are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO, NamedTuple, cast

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.progress import BYTES, progress
from resnet_pipeline.sources.archives import read_tables
from resnet_pipeline.sources.catalogue import Catalogue
from resnet_pipeline.sources.entries import UNLABELLED, Entries, Entry
from resnet_pipeline.sources.file_views import HashingReader, Window, check_md5
from resnet_pipeline.sources.labelled_files import META, synsets
from resnet_pipeline.sources.members import address_of, clean
from resnet_pipeline.sources.objects import AnnotatedImage, read_voc
from resnet_pipeline.sources.tar_files import Tar, list_tar, walk_tar
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.local import LocalStorage

TRAIN, VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT, TEST = "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_img_test_v10102019.tar"
BOXES = ("ILSVRC2012_bbox_train_v2.tar.gz", "ILSVRC2012_bbox_val_v3.tgz")
WANTED = f"the ILSVRC-2012 archives ({TRAIN}, {VAL}, {DEVKIT})"

MD5 = {
    TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
    VAL: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
    TEST: "e1b8681fff3d63731c599df9b4b6fc02",
}
"""As image-net.org's download page has them; torchvision's ImageNet dataset has the first three."""

_TRUTH = "ILSVRC2012_validation_ground_truth.txt"


def ilsvrc(storage: Storage, *, check: bool = True) -> Catalogue | None:
    """Return the catalogue, None if neither the training nor the validation archive is there.

    ``check`` compares MD5s, for which every archive is read completely. The validation archive alone is enough for
    those who only test. Raises RefusedError for an archive that is missing, damaged or not the published one.
    """
    there = next((name for name in (TRAIN, VAL) if storage.stat(name) is not None), None)
    if there is None:
        return None
    # all archives must be there
    for name in (VAL, DEVKIT):
        if storage.stat(name) is None:
            raise RefusedError(f"{address_of(storage, there)} is there, but {name} is not; put it beside it")
    md5: dict[str, str] = {}

    def reading(name: str) -> AbstractContextManager[BinaryIO]:
        return _reading(storage, name, md5 if check else None)

    with reading(DEVKIT):  # the small archives first: a wrong one is found before 138 GB are read
        pass
    # then what each holds, the training archive last
    kit = _devkit(storage)
    beside = Entries()
    with reading(VAL) as file:
        _validation(file, address_of(storage, VAL), kit.truth, beside)
    if storage.stat(TEST) is not None:
        with reading(TEST) as file:
            members, _ = list_tar(file, TEST, address_of(storage, TEST))
            beside.extend(Entry(member, "test", UNLABELLED) for member in members)
    entries = Entries()
    if there == TRAIN:
        with reading(TRAIN) as file:
            _training(file, address_of(storage, TRAIN), entries)
    entries.extend(beside)
    objects = _objects(storage, entries)
    # the order of the labels is that of the wnids
    classes = sorted([label for split, label in entries.kinds() if split == "train"] or kit.classes)
    return Catalogue(
        layout="ILSVRC-2012 archives",
        address=storage.url,
        storage=storage,
        entries=entries,
        classes=classes,
        class_words={wnid: kit.words[wnid] for wnid in classes if wnid in kit.words},
        md5=md5,
        objects=objects,
    )


def _objects(storage: Storage, entries: Entries) -> dict[str, AnnotatedImage] | None:
    """Return what the archives of boxes say of the images, by the images' names; None if there are no such archives."""
    if all(storage.stat(name) is None for name in BOXES):
        return None
    names = {PurePosixPath(name).stem: name for name in entries.members.names()}
    found: dict[str, AnnotatedImage] = {}
    for name in BOXES:
        if storage.stat(name) is None:
            continue
        archive = Tar(storage, name)
        members = [m for m in archive.members() if m.name.endswith(".xml") and PurePosixPath(m.name).stem in names]
        for member, data in zip(members, read_tables(archive, members), strict=True):
            # ILSVRC counts pixels from 0
            found[names[PurePosixPath(member.name).stem]] = read_voc(data, f"{archive.address}: {member.name}", first=0)
    return found or None


@contextmanager
def _reading(storage: Storage, name: str, md5: dict[str, str] | None) -> Iterator[BinaryIO]:
    """Yield an archive as a file; with ``md5``, all of it is hashed, and its MD5 noted there if it is right."""
    stored = storage.stat(name)
    size = stored.size if stored else 0
    with storage.open(name) as raw:
        if md5 is None and isinstance(storage, LocalStorage):
            yield raw
            return
        title = f"listing {name}" if md5 is None else f"comparing the MD5 of {name}"
        with progress(title, total=size, unit=BYTES) as bar:
            file = HashingReader(raw, on_bytes=bar.reach, hashed=md5 is not None)
            yield cast(BinaryIO, file)
            if md5 is not None:
                check_md5(address_of(storage, name), file.hexdigest(), MD5[name])
                md5[name] = MD5[name]


def _training(file: BinaryIO, address: str, entries: Entries) -> None:
    """Add the images of the class archives in the training archive."""
    for outer in walk_tar(file, address):
        name = clean(outer.name)
        wnid, dot, kind = name.partition(".")
        if not outer.isreg() or outer.issparse() or (dot + kind) != ".tar":
            raise RefusedError(f"archive {address} holds {name}, which is no class archive <wnid>.tar")
        window = cast(BinaryIO, Window(file, outer.offset_data, outer.size))
        members, _ = list_tar(window, TRAIN, f"{address}/{name}", outer.offset_data)
        if not members:
            raise RefusedError(f"archive {address}/{name} holds no images")
        entries.extend(Entry(member, "train", wnid) for member in members)


def _validation(file: BinaryIO, address: str, truth: list[str], entries: Entries) -> None:
    """Add the validation images with the classes of the ground truth, by the number in their names."""
    members, _ = list_tar(file, VAL, address)
    if len(members) != len(truth):
        raise RefusedError(
            f"archive {address} holds {len(members)} images, but {_TRUTH} of {DEVKIT} {len(truth)} lines"
        )
    for member in members:
        found = re.search(r"_val_(\d{8})\.JPEG$", member.name)
        if not found or not 1 <= int(found[1]) <= len(truth):
            raise RefusedError(f"archive {address} holds {member.name}, not named ILSVRC2012_val_<number>.JPEG")
        entries.append(Entry(member, "val", truth[int(found[1]) - 1]))


class _Kit(NamedTuple):
    """What the development kit says: words of the classes, classes with images, each validation image's class."""

    words: dict[str, str]
    classes: list[str]
    truth: list[str]


def _devkit(storage: Storage) -> _Kit:
    archive = Tar(storage, DEVKIT)
    members = {PurePosixPath(m.name).name: m for m in archive.members()}
    if missing := {META, _TRUTH} - set(members):
        raise RefusedError(f"archive {archive.address} holds no {min(missing)}")
    wanted = sorted((members[META], members[_TRUTH]), key=lambda m: m.offset)
    contents = dict(zip((m.name for m in wanted), read_tables(archive, wanted), strict=True))
    wnids, words, classes = synsets(contents[members[META].name], f"archive {archive.address}: {META}")
    try:
        truth = [wnids[int(line)] for line in contents[members[_TRUTH].name].split()]
    except (ValueError, KeyError) as error:
        reason = f"no class has the number {error}" if isinstance(error, KeyError) else str(error)
        raise RefusedError(f"archive {archive.address}: {_TRUTH} can't be read: {reason}") from None
    return _Kit(words, classes, truth)
