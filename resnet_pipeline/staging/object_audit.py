"""Objects as staging packs them: what a source's annotation says of an image, held against the image itself."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from resnet_pipeline.data.manifest import ObjectFacts, Remark
from resnet_pipeline.data.objects import ImageObjects
from resnet_pipeline.errors import RefusedError
from resnet_pipeline.sources.objects import AnnotatedImage, Box, SourceObject

_ROUNDING = 1.0  # pixels that a box may stick out before that is remarked: annotations are rounded


@dataclass
class ObjectAudit:
    """Takes in the annotations of a dataset's images, one after the other, and keeps an account of what it changed.

    ``labels`` are the numbers of the classes.
    """

    labels: Mapping[str, int]
    objects: int = 0
    masks: int = 0
    clipped: int = 0
    left_out: list[Remark] = field(default_factory=list)
    _seen: set[tuple[str, int]] = field(default_factory=set)

    def take(self, split: str, file: str, said: AnnotatedImage, *, width: int, height: int, place: int) -> ImageObjects:
        """Return the objects of an image of this size; ``place`` numbers it if the source does not.

        An object without area, outside of the image, with a coordinate that is no number, or with the number of
        another is left out, with a remark; of a broken mask the box is kept. Raises RefusedError if the annotation is
        of an image of another size.
        """
        if said.width and said.height and (said.width, said.height) != (width, height):
            raise RefusedError(
                f"{file} has {width}×{height} pixels, its annotation says {said.width}×{said.height}: boxes of one "
                "don't fit the other; take the image that was annotated, or leave it out"
            )
        kept: list[tuple[SourceObject, Box, str]] = []
        for number, each in enumerate(said.objects, 1):
            named = f"object {each.number or number} ({each.label})"
            box, why = _inside(each.box, width, height)
            if box is None or self._twice(split, said, each):
                self.left_out.append(Remark(file, f"{named} {why or 'has the number of another'}: left out"))
                continue
            self.clipped += max(abs(a - b) for a, b in zip(box, each.box, strict=True)) > _ROUNDING
            mask, wrong = _mask(each.mask, width, height)
            if wrong:
                self.left_out.append(Remark(file, f"the mask of {named} {wrong}: left out, its box is kept"))
            kept.append((each, box, mask))
        self.objects += len(kept)
        self.masks += sum(bool(mask) for _, _, mask in kept)
        return ImageObjects(
            image=said.number or place,
            box=np.array([box for _, box, _ in kept], np.float64).reshape(-1, 4),
            label=np.array([self.labels[each.label] for each, _, _ in kept], np.int32),
            number=np.array([each.number for each, _, _ in kept], np.int64),
            crowd=np.array([each.crowd for each, _, _ in kept], np.bool_),
            difficult=np.array([each.difficult for each, _, _ in kept], np.bool_),
            area=np.array([_area(each, box) for each, box, _ in kept], np.float64),
            mask=[mask for _, _, mask in kept],
        )

    def facts(self, categories: tuple[int, ...]) -> ObjectFacts:
        """Return what the manifest says of all of them."""
        return ObjectFacts(
            objects=self.objects,
            masks=self.masks,
            clipped=self.clipped,
            left_out=tuple(sorted(self.left_out, key=lambda remark: (remark.file, remark.reason))),
            categories=categories,
        )

    def _twice(self, split: str, said: AnnotatedImage, each: SourceObject) -> bool:
        """Return whether an object's number is another's; numbers are of the whole set in COCO, else of the image."""
        if not said.number or not each.number:
            return False
        again = (split, each.number) in self._seen
        self._seen.add((split, each.number))
        return again


def _inside(box: Box, width: int, height: int) -> tuple[Box | None, str]:
    """Return the part of a box in the image, None if there is none, with the reason."""
    left, top, right, bottom = box
    if not all(map(math.isfinite, box)):
        return None, "has a coordinate that is no number"
    if right <= left or bottom <= top:
        return None, "has no area"
    inside = max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return None, f"lies outside of the image of {width}×{height} pixels"
    return inside, ""


def _area(each: SourceObject, box: Box) -> float:
    if each.area is not None and math.isfinite(each.area) and each.area >= 0:
        return each.area
    return (box[2] - box[0]) * (box[3] - box[1])


def _mask(text: str, width: int, height: int) -> tuple[str, str]:
    """Return a mask if it is sound, else an empty text and what is wrong with it."""
    if not text:
        return "", ""
    mask: Any = json.loads(text)
    if isinstance(mask, list):
        sound = all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and all(isinstance(value, int | float) and math.isfinite(value) for value in polygon)
            for polygon in mask
        )
        return (text, "") if sound else ("", "has a polygon that is not three points or more")
    try:
        size, counts = [int(side) for side in mask["size"]], mask["counts"]
    except (KeyError, TypeError, ValueError):
        return "", "is neither polygons nor run lengths"
    if size != [height, width]:
        return "", f"has {size[-1]}×{size[0]} pixels, the image {width}×{height}"
    if isinstance(counts, list) and sum(counts) != width * height:
        return "", "has run lengths that don't fill the image"
    return text, ""
