"""Objects in images, as annotations say them: a box, its class, and a mask if there is one.

A box is (left, top, right, bottom) in pixels of the image as it is stored, from its upper left corner on: the pixel in
that corner alone has the box (0, 0, 1, 1). Layouts that count otherwise are converted where they are read. A mask is
text, as COCO's JSON has it: polygons ``[[x, y, x, y, …], …]``, or run lengths ``{"size": [height, width], "counts":
…}``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import astuple, dataclass

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.names import escaped

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class SourceObject:
    """An object of an image: ``label`` is the name of its class, ``number`` its own in the source, 0 for none.

    A ``crowd`` is a region of many objects that are not told apart (COCO); a ``difficult`` one counts neither as found
    nor as missed (Pascal VOC). ``area`` is the source's, in pixels, None for the box's. ``mask`` is empty for none.
    """

    box: Box
    label: str
    number: int = 0
    crowd: bool = False
    difficult: bool = False
    area: float | None = None
    mask: str = ""


@dataclass(frozen=True, kw_only=True)
class AnnotatedImage:
    """What an annotation says of an image: the file's name, the size that it says, (0, 0) for none, its objects.

    ``number`` is the image's own in the source, 0 for none; COCO's result files name images by it.
    """

    file: str
    width: int = 0
    height: int = 0
    objects: tuple[SourceObject, ...] = ()
    number: int = 0


def text_of(said: AnnotatedImage) -> str:
    """Return what an annotation says as text, for `annotated_of`; numbers that are none stay so."""
    return json.dumps([said.file, said.width, said.height, said.number, [astuple(each) for each in said.objects]])


def annotated_of(text: str) -> AnnotatedImage:
    """Return what `text_of` made a text of.

    >>> annotated_of(text_of(AnnotatedImage(file="a", objects=(SourceObject((0, 1, 2, 3), "dog"),)))).objects[0].label
    'dog'
    """
    file, width, height, number, objects = json.loads(text)
    return AnnotatedImage(
        file=file,
        width=width,
        height=height,
        number=number,
        objects=tuple(SourceObject(tuple(box), *rest) for box, *rest in objects),
    )


def read_voc(data: bytes, where: str, *, first: int = 1) -> AnnotatedImage:
    """Return what a Pascal VOC annotation in XML says; RefusedError, naming ``where``, if it can't be read.

    Its corners are the first and the last pixel of a box, counted from ``first``: 1 in VOC, 0 in ILSVRC.

    Example: ``read_voc(path.read_bytes(), str(path)).objects[0].box``
    """
    try:
        root = ET.fromstring(data)
    except (ET.ParseError, ValueError) as error:
        raise RefusedError(f"{where} is no annotation in XML: {error}") from None
    size = root.find("size")
    objects = []
    for number, element in enumerate(root.iter("object"), 1):
        name, found = element.findtext("name"), element.find("bndbox")
        if not name or found is None:
            raise RefusedError(f"{where}: object {number} has no {'name' if found is not None else 'bndbox'}")
        box = _corners([found.findtext(side, "") for side in ("xmin", "ymin", "xmax", "ymax")], first)
        if box is None:
            raise RefusedError(f"{where}: bndbox of object {number} ({escaped(name)}) is not four numbers")
        objects.append(
            SourceObject(box, escaped(name), number, difficult=element.findtext("difficult", "0").strip() == "1")
        )
    return AnnotatedImage(
        file=escaped(root.findtext("filename", "")),
        width=_number(size, "width"),
        height=_number(size, "height"),
        objects=tuple(objects),
    )


def read_solution(text: str, where: str) -> dict[str, tuple[SourceObject, ...]]:
    """Return the objects of each image of a table of Kaggle's ILSVRC: ``ImageId,"wnid x y x y wnid …"``.

    The corners are the first and the last pixel of a box, counted from 0. A row with a class and no box is left out.
    Raises RefusedError, naming the image, for one that is neither.

    >>> read_solution('ImageId,PredictionString\\nval_1,n01 0 10 99 49 \\n', "t.csv")["val_1"][0].box
    (0.0, 10.0, 100.0, 50.0)
    """
    return dict(_solutions(text, where))


def _solutions(text: str, where: str) -> Iterator[tuple[str, tuple[SourceObject, ...]]]:
    for row in csv.reader(io.StringIO(text)):
        if len(row) != 2 or row[0] == "ImageId" or len(words := row[1].split()) < 2:  # no box
            continue
        boxes = [_corners(words[at + 1 : at + 5], 0) for at in range(0, len(words), 5)]
        if len(words) % 5 or None in boxes:
            raise RefusedError(f"{where}: the row of {escaped(row[0])} is not classes with four numbers each")
        labels = [escaped(word) for word in words[::5]]
        yield (
            escaped(row[0]),
            tuple(
                SourceObject(box, label, number)
                for number, (box, label) in enumerate(zip(boxes, labels, strict=True), 1)
                if box is not None
            ),
        )


def _corners(texts: list[str], first: int) -> Box | None:
    """Return the box of the first and last pixels in x and y, None if they are not four numbers.

    Where first and last are one, somebody has clicked and not drawn: such a box has no area. It is kept, as what is not
    finite: staging leaves such an object out, and names it.
    """
    try:
        left, top, right, bottom = map(float, texts)
    except ValueError:
        return None
    right, bottom = right + (right > left), bottom + (bottom > top)
    return left - first, top - first, right - first, bottom - first


def _number(element: ET.Element | None, name: str) -> int:
    try:
        value = float(element.findtext(name, "0")) if element is not None else 0.0
    except ValueError:
        return 0
    return int(value) if math.isfinite(value) else 0
