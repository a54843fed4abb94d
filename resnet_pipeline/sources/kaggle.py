"""Kaggle's layout of ILSVRC ("ImageNet Object Localization Challenge"), in a folder or an archive of it.

``ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG``, ``…/val/*.JPEG`` and ``…/test/*.JPEG``; the classes of the val images are
in ``LOC_val_solution.csv``, what the classes are called in ``LOC_synset_mapping.txt``. Boxes are in the former and in
``LOC_train_solution.csv``, which some training images lack.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import PurePosixPath

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.names import escaped, hidden
from resnet_pipeline.sources.archives import read_tables
from resnet_pipeline.sources.catalogue import Catalogue
from resnet_pipeline.sources.columns import Members
from resnet_pipeline.sources.containers import Container
from resnet_pipeline.sources.entries import UNLABELLED, Entries, Entry
from resnet_pipeline.sources.image_folder import accounted, stream_of
from resnet_pipeline.sources.members import Member
from resnet_pipeline.sources.objects import AnnotatedImage, read_solution

WANTED = "Kaggle's ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG with LOC_val_solution.csv"

_IMAGES = "Data/CLS-LOC/"
_SOLUTION, _WORDS = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
_TRAIN_BOXES = "LOC_train_solution.csv"


def kaggle(container: Container, members: Members) -> Catalogue | None:
    """Return the catalogue, None if there is neither ``Data/CLS-LOC/train`` nor ``Data/CLS-LOC/val``.

    A validation set alone has the classes of ``LOC_synset_mapping.txt``. Raises RefusedError if val images are without
    a class.
    """
    # the images, each with the folders that it lies in
    images = members.part(lambda name: f"/{_IMAGES}" in f"/{name}" and not hidden(name))
    if not any(_place(m)[0] in ("train", "val") for m in images):
        return None
    # the tables: class and boxes of each val image, boxes of training images, the classes' names in words
    tables = {PurePosixPath(m.name).name: m for m in members.chosen(_is_table)}
    texts = {
        PurePosixPath(m.name).name: data.decode(errors="replace")
        for m, data in _contents(container, members, list(tables.values()))
    }
    solution = _solution(texts.get(_SOLUTION, ""))
    # an entry per image, by the folder that it lies in
    entries = Entries()
    for member in images:
        match _place(member):
            case ["train", wnid, _]:
                entries.append(Entry(member, "train", wnid))
            case ["val", name]:
                if (wnid := solution.get(PurePosixPath(name).stem, "")) == "":
                    raise RefusedError(f"{container.address}: {member.name} has no class in {_SOLUTION}; add that file")
                entries.append(Entry(member, "val", wnid))
            case ["test", _]:
                entries.append(Entry(member, "test", UNLABELLED))
    # the classes: those of the training images, else those of the table
    lines = (line.partition(" ") for line in texts.get(_WORDS, "").splitlines())
    words = {escaped(wnid): escaped(text.strip()) for wnid, _, text in lines if wnid}
    classes = sorted([label for split, label in entries.kinds() if split == "train"] or words)
    if not classes:
        raise RefusedError(
            f"{container.address} has no training images, and no {_WORDS} to name the classes; add that file"
        )
    # an account of the other files
    reasons = {member.name: "read for its labels and boxes" for member in tables.values()}
    hidden_files, ignored = accounted(container, members, entries, reasons)
    return Catalogue(
        layout="Kaggle's ILSVRC",
        address=container.address,
        storage=container.storage,
        entries=entries,
        classes=classes,
        class_words={wnid: words[wnid] for wnid in classes if wnid in words},
        objects=_objects(container, entries, texts),
        hidden=hidden_files,
        ignored=ignored,
        stream=stream_of(container),
    )


def _place(image: Member) -> list[str]:
    return image.name.partition(_IMAGES)[2].split("/")


def _is_table(name: str) -> bool:
    return PurePosixPath(name).name in (_SOLUTION, _TRAIN_BOXES, _WORDS)


def _contents(container: Container, members: Members, wanted: list[Member]) -> list[tuple[Member, bytes]]:
    names = {m.name for m in wanted}
    ordered = members.chosen(names.__contains__)
    return list(zip(ordered, read_tables(container, ordered), strict=True))


def _solution(text: str) -> dict[str, str]:
    """Return the wnid of each val image; a row is ``ImageId,"wnid x y x y wnid …"``."""
    rows = csv.reader(io.StringIO(text))
    return {
        escaped(row[0]): escaped(row[1].split()[0])
        for row in rows
        if len(row) == 2 and row[1].split() and row[0] != "ImageId"
    }


def _objects(container: Container, entries: Entries, texts: Mapping[str, str]) -> dict[str, AnnotatedImage] | None:
    """Return the objects of the images that a table has boxes of; None if no table has any."""
    boxes = {
        stem: objects
        for table in (_SOLUTION, _TRAIN_BOXES)
        for stem, objects in read_solution(texts.get(table, ""), f"{container.address}: {table}").items()
    }
    found = {
        entry.member.name: AnnotatedImage(file=entry.member.name, objects=boxes[stem])
        for entry in entries
        if (stem := PurePosixPath(entry.member.name).stem) in boxes
    }
    return found or None
