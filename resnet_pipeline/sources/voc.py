"""Pascal VOC's layout: ``JPEGImages/*``, ``Annotations/*.xml`` and lists of images in ``ImageSets/Main/*.txt``.

With a list ``test`` of annotated images, as VOC 2007 has one, the training split is ``trainval`` and the validation
split ``test``, as the field trains and tests; else they are ``train`` and ``val``. Several such folders (``VOC2007``,
``VOC2012``) are several datasets: one of them is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.names import hidden, is_other
from resnet_pipeline.sources.archives import read_tables
from resnet_pipeline.sources.catalogue import Catalogue
from resnet_pipeline.sources.columns import Members
from resnet_pipeline.sources.containers import Container
from resnet_pipeline.sources.entries import UNLABELLED, Entries, Entry
from resnet_pipeline.sources.image_folder import accounted, stream_of
from resnet_pipeline.sources.objects import AnnotatedImage, read_voc

WANTED = "Pascal VOC's JPEGImages/*, Annotations/*.xml and ImageSets/Main/*.txt"

_IMAGES, _ANNOTATIONS, _LISTS = "JPEGImages/", "Annotations/", "ImageSets/Main/"
_READ = "read for its objects"


def voc(container: Container, members: Members) -> Catalogue | None:
    """Return the catalogue, None if there is no folder of annotations beside one of images.

    Raises RefusedError if an image of a list is missing, an annotation can't be read, or several folders could be the
    dataset.
    """
    base = _base(container, members)
    if base is None:
        return None
    inside = {m.name[len(base) :]: m for m in members if m.name.startswith(base) and not hidden(m.name)}
    images = {
        PurePosixPath(name).stem: m for name, m in inside.items() if name.startswith(_IMAGES) and not is_other(name)
    }
    notes = {name: m for name, m in inside.items() if name.startswith(_ANNOTATIONS) and name.lower().endswith(".xml")}
    lists = {name: m for name, m in inside.items() if name.startswith(_LISTS) and name.lower().endswith(".txt")}
    # the lists and annotations, read in the container's order
    names = {m.name for m in (*notes.values(), *lists.values())}
    wanted = members.chosen(names.__contains__)
    contents = dict(zip((m.name for m in wanted), read_tables(container, wanted), strict=True))
    annotated = {
        PurePosixPath(name).stem: read_voc(contents[m.name], f"{container.address}: {m.name}")
        for name, m in notes.items()
    }
    splits = _splits(
        {PurePosixPath(name).stem: contents[m.name].decode(errors="replace") for name, m in lists.items()}, annotated
    )
    # an entry for each image of a split, in the container's order
    entries = []
    for split, stems in splits.items():
        for stem in stems:
            if stem not in images:
                raise RefusedError(f"{container.address}: {stem} of ImageSets/Main has no image in {base}{_IMAGES}")
            if stem not in annotated:
                raise RefusedError(f"{container.address}: {stem} of ImageSets/Main has no {_ANNOTATIONS}{stem}.xml")
            entries.append(Entry(images[stem], split, UNLABELLED))
    place = {member.name: number for number, member in enumerate(members)}
    entries.sort(key=lambda entry: place[entry.member.name])
    packed = Entries(entries)
    reasons = {m.name: _READ for m in notes.values()} | {m.name: "read for its splits" for m in lists.values()}
    hidden_files, ignored = accounted(container, members, packed, reasons)
    return Catalogue(
        layout="Pascal VOC",
        address=container.address,
        storage=container.storage,
        entries=packed,
        classes=sorted({found.label for note in annotated.values() for found in note.objects}),
        objects={images[stem].name: note for stem, note in annotated.items() if stem in images},
        hidden=hidden_files,
        ignored=ignored,
        stream=stream_of(container),
    )


def _base(container: Container, members: Members) -> str | None:
    """Return the folder that holds annotations and images, with its slash; None if there is none."""
    found: dict[str, set[str]] = {_IMAGES: set(), _ANNOTATIONS: set()}
    annotations: set[str] = set()
    for name in members.names():
        for folder, around in found.items():
            if f"/{folder}" in f"/{name}" and not hidden(name):
                around.add(name.partition(folder)[0])
                if folder == _ANNOTATIONS and name.endswith(".xml"):
                    annotations.add(name.partition(folder)[0])
    bases = sorted(found[_IMAGES] & found[_ANNOTATIONS] & annotations)
    if len(bases) > 1:
        raise RefusedError(
            f"{container.address} holds several datasets, {bases[0] or './'} and {bases[1]}; name one of them"
        )
    return bases[0] if bases else None


def _splits(lists: Mapping[str, str], annotated: Mapping[str, AnnotatedImage]) -> dict[str, list[str]]:
    """Return the images of the splits ``train`` and ``val``; without any list all of them are for training."""
    stems = {name: [line.split()[0] for line in text.splitlines() if line.split()] for name, text in lists.items()}
    tested = [stem for stem in stems.get("test", []) if stem in annotated]
    if tested:  # of VOC 2012's the annotations are not public
        training = stems.get("trainval") or [*stems.get("train", []), *stems.get("val", [])]
        return {"train": list(dict.fromkeys(training)), "val": tested}
    if "train" in stems:
        return {"train": stems["train"], "val": stems.get("val", [])}
    return {"train": sorted(stems.get("trainval", annotated))}
