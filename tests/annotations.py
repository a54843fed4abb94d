"""Small sources with annotated objects, in COCO's layout and in Pascal VOC's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.images import jpeg

SQUARE = [[4.0, 4.0, 14.0, 4.0, 14.0, 14.0, 4.0, 14.0]]


def coco_files(
    annotations: Sequence[Mapping[str, Any]] | None = None, *, split: str = "train", count: int = 2, **changed: Any
) -> dict[str, bytes]:
    """Return a set of images of 64×48 pixels and their instances; ``changed`` replaces parts of the JSON."""
    default = [
        {"id": 7, "image_id": 1, "category_id": 3, "bbox": [4, 4, 10, 10], "area": 90.5, "iscrowd": 0,
         "segmentation": SQUARE},
        {"id": 8, "image_id": 1, "category_id": 90, "bbox": [0, 0, 64, 48], "area": 3072, "iscrowd": 1,
         "segmentation": {"size": [48, 64], "counts": [0, 3072]}},
    ]  # fmt: skip
    content = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg", "width": 64, "height": 48} for i in range(1, count + 1)],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        "annotations": default if annotations is None else list(annotations),
        **changed,
    }
    files = {f"{split}2017/{i:012d}.jpg": jpeg(48, 64, seed=i) for i in range(1, count + 1)}
    return {f"annotations/instances_{split}2017.json": json.dumps(content).encode(), **files}


def voc_files(lists: Mapping[str, Sequence[str]], *, boxes: str = "1 1 64 48") -> dict[str, bytes]:
    """Return a folder of images of 64×48 pixels with a dog each, and lists of them."""
    stems = dict.fromkeys(stem for stems in lists.values() for stem in stems)
    files = {f"VOC2007/JPEGImages/{stem}.jpg": jpeg(48, 64, seed=i) for i, stem in enumerate(stems)}
    files |= {f"VOC2007/Annotations/{stem}.xml": voc_xml(f"{stem}.jpg", boxes) for stem in stems}
    return files | {f"VOC2007/ImageSets/Main/{name}.txt": "\n".join(own).encode() for name, own in lists.items()}


def voc_xml(file: str, box: str, *, name: str = "dog", difficult: int = 0) -> bytes:
    """Return an annotation of one object; ``box`` is "xmin ymin xmax ymax"."""
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    )
    return (
        f"<annotation><filename>{file}</filename><size><width>64</width><height>48</height></size><object>"
        f"<name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object></annotation>"
    ).encode()
