"""Cells cut out of BCCD's images by their boxes, as a folder of classes: what `resnet-pipeline finetune` takes.

    RESNET_PIPELINE_BCCD=bccd.tar.gz python examples/blood_cells.py cells 100
    resnet-pipeline finetune MODEL --source cells

The archive holds https://github.com/Shenggan/BCCD_Dataset (MIT). The last argument is how many training cells of each
class are taken, evenly spaced; without it all are. The images of its splits train and val are trained on, those of test
are tested.
"""

# %%
import os
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

from resnet_pipeline.data.image_files import open_image

MARGIN = 0.1  # of the longer side, around a box

# %%
SIDES = ("xmin", "ymin", "xmax", "ymax")
Box = tuple[int, int, int, int]


def boxes(annotation: bytes) -> list[tuple[str, Box]]:
    """Return the class and the box (left, top, right, bottom) of each object that has an area."""
    found = []
    for thing in ElementTree.fromstring(annotation).iter("object"):
        left, top, right, bottom = (int(thing.findtext(f"bndbox/{side}", "0")) for side in SIDES)
        if right > left and bottom > top:
            found.append((thing.findtext("name", ""), (left, top, right, bottom)))
    return found


def square(box: Box) -> Box:
    """Return the square around a box, with a margin; what lies outside of the image is black."""
    left, top, right, bottom = box
    half = round((1 / 2 + MARGIN) * max(right - left, bottom - top))
    x, y = (left + right) // 2, (top + bottom) // 2
    return x - half, y - half, x + half, y + half


def cut_out(archive: Path, folder: Path, per_class: int | None = None) -> dict[str, dict[str, int]]:
    """Write the cells to folder/train/<class>/ and folder/val/<class>/; return how many there are of each."""
    with tarfile.open(archive) as tar:
        files = {member.name.partition("BCCD/")[2]: tar.extractfile(member) for member in tar if member.isfile()}
        contents = {name: file.read() for name, file in files.items() if file is not None}
    counts: dict[str, dict[str, int]] = {}
    for split, lists in (("train", ("train", "val")), ("val", ("test",))):
        names = [name for one in lists for name in contents[f"ImageSets/Main/{one}.txt"].decode().split()]
        cells: dict[str, list[tuple[str, Box]]] = defaultdict(list)
        for name in names:
            for kind, box in boxes(contents[f"Annotations/{name}.xml"]):
                cells[kind].append((name, square(box)))
        for kind, found in cells.items():
            most = len(found) if per_class is None or split == "val" else min(per_class, len(found))
            chosen = [found[i * len(found) // most] for i in range(most)]
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
            for number, (name, box) in enumerate(chosen):
                with open_image(contents[f"JPEGImages/{name}.jpg"]) as image:
                    image.crop(box).save(folder / split / kind / f"{name}-{number:04d}.png")
            counts.setdefault(split, {})[kind] = most
    return counts


# %%
if __name__ == "__main__":
    given = os.environ.get("RESNET_PIPELINE_BCCD")
    if not given:
        print("set RESNET_PIPELINE_BCCD to the archive of BCCD")
    else:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("cells")
        print(cut_out(Path(given), folder, int(sys.argv[2]) if len(sys.argv) > 2 else None))
