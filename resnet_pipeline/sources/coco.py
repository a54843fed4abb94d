"""COCO's layout: images, and ``annotations/instances_<set>.json`` with categories, boxes and masks.

``instances_train2017.json`` is of split ``train``, ``instances_val2017.json`` of ``val``; the year, and what stands
around it, does not matter. An image lies in the folder of its set (``val2017/000000000139.jpg``), or anywhere if its
name stands once.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.names import escaped, hidden, is_other
from resnet_pipeline.sources.archives import read_tables
from resnet_pipeline.sources.catalogue import Catalogue
from resnet_pipeline.sources.columns import Members
from resnet_pipeline.sources.containers import Container
from resnet_pipeline.sources.entries import UNLABELLED, Entries, Entry
from resnet_pipeline.sources.image_folder import accounted, stream_of
from resnet_pipeline.sources.members import Member
from resnet_pipeline.sources.objects import AnnotatedImage, SourceObject

WANTED = "COCO's annotations/instances_<set>.json with the images"

_SET = re.compile(r"(?:^|/)annotations/instances_((train|val|test)\w*)\.json$")
_MOST_BYTES = 2**31  # COCO's largest has 0.47 GB, LVIS' 1.1 GB


def coco(container: Container, members: Members) -> Catalogue | None:
    """Return the catalogue, None if there is no ``annotations/instances_*.json``.

    Raises RefusedError for an annotation that can't be read, names an image or category that its file does not have,
    or says a category otherwise than another set's; and for an image that is missing.
    """
    sets = {n: found for n in members.names() if not hidden(n) and (found := _SET.search(n))}
    if not sets:
        return None
    splits = [found[2] for found in sets.values()]
    if len(set(splits)) < len(splits):
        both = sorted(sets)
        raise RefusedError(
            f"{container.address} holds several sets of a split ({', '.join(both[:3])}); leave one of each"
        )
    wanted = members.chosen(sets.__contains__)
    contents = zip(wanted, read_tables(container, wanted, most=_MOST_BYTES), strict=True)
    images = _Images(members)
    categories: dict[int, str] = {}
    entries, objects = [], {}
    for member, data in contents:
        found = sets[member.name]
        instances = _Instances(data, f"{container.address}: {member.name}")
        for number, name in instances.categories.items():
            if categories.setdefault(number, name) != name:
                raise RefusedError(
                    f"{instances.where}: category {number} is {name!r}, and {categories[number]!r} in another set"
                )
        for annotated in instances.images():
            image = images.of(annotated.file, found[1])
            if image is None:
                raise RefusedError(f"{instances.where}: image {annotated.file} is not in {container.address}")
            entries.append(Entry(image, found[2], UNLABELLED))
            objects[image.name] = annotated
    place = {member.name: number for number, member in enumerate(members)}
    entries.sort(key=lambda entry: place[entry.member.name])
    packed = Entries(entries)
    reasons = dict.fromkeys(sets, "read for its objects")
    hidden_files, ignored = accounted(container, members, packed, reasons)
    return Catalogue(
        layout="COCO",
        address=container.address,
        storage=container.storage,
        entries=packed,
        classes=[categories[number] for number in sorted(categories)],
        category_ids=sorted(categories),
        objects=objects,
        hidden=hidden_files,
        ignored=ignored,
        stream=stream_of(container),
    )


class _Images:
    """The files that may be images, by name."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._by_name: dict[str, list[Member]] = defaultdict(list)
        for member in members:
            if not is_other(member.name) and not hidden(member.name):
                self._by_name[PurePosixPath(member.name).name].append(member)

    def of(self, name: str, folder: str) -> Member | None:
        """Return the file of an image of a set: the one in the set's folder, else the only one of its name."""
        found = self._by_name.get(PurePosixPath(name).name, [])
        beside = [m for m in found if folder in PurePosixPath(m.name).parts[:-1]]
        chosen = beside or found
        return chosen[0] if len(chosen) == 1 else None


class _Instances:
    """A file of annotations."""

    def __init__(self, data: bytes, where: str) -> None:
        self.where = where
        try:
            content = json.loads(data)
            self._images = {int(image["id"]): image for image in content["images"]}
            self.categories = {int(c["id"]): escaped(str(c["name"])) for c in content["categories"]}
            self._annotations: list[Mapping[str, Any]] = content.get("annotations") or []
            names = [str(image["file_name"]) for image in content["images"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise RefusedError(f"{where} is no file of COCO's instances: {what}") from None
        if len(self._images) < len(names):
            raise RefusedError(f"{where} has two images of one id")
        if len(set(self.categories.values())) < len(self.categories):
            raise RefusedError(f"{where} has two categories of one name")

    def images(self) -> list[AnnotatedImage]:
        """Return the images with their objects, in the file's order."""
        found: dict[int, list[SourceObject]] = {number: [] for number in self._images}
        for annotation in self._annotations:
            number, image, read = self._object(annotation)
            if image not in found:
                raise RefusedError(f"{self.where}: annotation {number} names image {image}, which it does not have")
            found[image].append(read)
        return [
            AnnotatedImage(
                file=escaped(str(image["file_name"])),
                width=int(image.get("width") or 0),
                height=int(image.get("height") or 0),
                objects=tuple(found[number]),
                number=number,
            )
            for number, image in self._images.items()
        ]

    def _object(self, annotation: Mapping[str, Any]) -> tuple[int, int, SourceObject]:
        try:
            number, image, category = (int(annotation[name]) for name in ("id", "image_id", "category_id"))
            left, top, width, height = map(float, annotation["bbox"])
            area = None if annotation.get("area") is None else float(annotation["area"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise RefusedError(f"{self.where}: an annotation can't be read: {what}") from None
        if category not in self.categories:
            raise RefusedError(f"{self.where}: annotation {number} names category {category}, which it does not have")
        mask = annotation.get("segmentation")
        return (
            number,
            image,
            SourceObject(
                (left, top, left + width, top + height),
                self.categories[category],
                number,
                crowd=bool(annotation.get("iscrowd")),
                area=area,
                mask=json.dumps(mask, separators=(",", ":")) if mask else "",
            ),
        )
