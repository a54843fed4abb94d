"""The built-in dataset for detectors: handwritten digits on backgrounds, with boxes and masks, in COCO's layout.

The digits are `sources.digits`' own: those that a classifier is validated on are in validation scenes alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resnet_pipeline.sources.digits import VALIDATION_SHARE
from resnet_pipeline.storage.local import LocalStorage

WIDTH, HEIGHT = 96, 72
"""Pixels of a scene."""
COUNTS = {"train": 480, "val": 120}
"""Scenes of each split."""

_SIDES = (18, 26)  # pixels of a digit's square, drawn uniformly
_MOST_DIGITS = 5
_TRIES = 40  # to find a place that no other digit has
_INK = 0.35  # of a pixel that belongs to a digit's mask
_LEAST_CONTRAST = 90.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Digit:
    """A digit on its square: how much ink each pixel has, float64 [side, side] from 0 to 1."""

    label: int
    ink: Floats


def write_scenes(folder: Path, counts: dict[str, int] | None = None, seed: int = 0) -> None:
    """Write ``folder/{train,val}/NNNNNN.jpg`` and ``folder/annotations/``; one that is there is left as it is.

    ``counts`` are the scenes of each split, by default `COUNTS`; what they show is a function of ``seed``. HeldError if
    another process is writing it.

    Example: ``write_scenes(Path("scenes"))``
    """
    if folder.exists():
        return
    with LocalStorage(folder.parent).lease(f".{folder.name}.lock"):  # two would write into one folder
        if not folder.exists():
            temporary = folder.with_name(f".{folder.name}.new")
            shutil.rmtree(temporary, ignore_errors=True)
            digits = _digits()
            for number, (split, count) in enumerate((counts or COUNTS).items()):
                _write_split(temporary, split, count, digits[split], np.random.default_rng([seed, number]))
            temporary.rename(folder)


def _write_split(
    folder: Path, split: str, count: int, digits: list[tuple[int, Floats]], rng: np.random.Generator
) -> None:
    from PIL import Image

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for number in range(1, count + 1):
        pixels, masks = _scene(digits, rng)
        file = folder / split / f"{number:06d}.jpg"
        Image.fromarray(pixels).save(file, quality=92)
        os.utime(file, (0, 0))  # written again, they are the same source
        images.append({"id": number, "file_name": file.name, "width": WIDTH, "height": HEIGHT})
        for label, mask in masks:
            annotations.append(_annotation(len(annotations) + 1, number, label, mask))
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": digit + 1, "name": str(digit)} for digit in range(10)],
    }
    file = folder / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    os.utime(file, (0, 0))


def _digits() -> dict[str, list[tuple[int, Floats]]]:
    """Return the label and the ink float64 [8, 8] of each split's digits."""
    from sklearn.datasets import load_digits

    loaded, seen = load_digits(), dict.fromkeys(range(10), 0)
    found: dict[str, list[tuple[int, Floats]]] = {"train": [], "val": []}
    for pixels, target in zip(loaded.images, loaded.target, strict=True):
        label = int(target)
        found["val" if seen[label] % VALIDATION_SHARE == 0 else "train"].append((label, pixels / 16))
        seen[label] += 1
    return found


def _scene(
    digits: list[tuple[int, Floats]], rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], list[tuple[int, npt.NDArray[np.bool_]]]]:
    """Return a scene uint8 [HEIGHT, WIDTH, 3] and its digits' labels and masks bool [HEIGHT, WIDTH]."""
    pixels = _background(rng)
    taken = np.zeros((HEIGHT, WIDTH), np.bool_)
    masks = []
    for _ in range(int(rng.integers(1, _MOST_DIGITS + 1))):
        label, ink = digits[int(rng.integers(len(digits)))]
        digit = _Digit(label, _resized(ink, int(rng.integers(_SIDES[0], _SIDES[1] + 1))))
        place = next(_places(digit, taken, rng), None)
        if place is None:
            continue
        top, left = place
        square = slice(top, top + len(digit.ink)), slice(left, left + len(digit.ink))
        taken[square] = True
        under = pixels[square]
        color = _color(under.mean(axis=(0, 1)), rng)
        pixels[square] = under + digit.ink[:, :, None] * (color - under)
        mask = np.zeros((HEIGHT, WIDTH), np.bool_)
        mask[square] = digit.ink >= _INK
        masks.append((digit.label, mask))
    noisy = pixels + rng.normal(0, 4, pixels.shape)
    return np.clip(noisy.round(), 0, 255).astype(np.uint8), masks


def _places(digit: _Digit, taken: npt.NDArray[np.bool_], rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Yield upper left corners at which a digit's square is free."""
    side = len(digit.ink)
    for _ in range(_TRIES):
        top, left = int(rng.integers(HEIGHT - side + 1)), int(rng.integers(WIDTH - side + 1))
        if not taken[top : top + side, left : left + side].any():
            yield top, left


def _background(rng: np.random.Generator) -> Floats:
    """Return a smooth pattern of dark colours, float64 [HEIGHT, WIDTH, 3]: coarse noise, resized."""
    from PIL import Image

    low, high = sorted(rng.uniform(0, 120, 2))
    coarse = rng.uniform(low, high, (int(rng.integers(2, 5)), int(rng.integers(2, 6)), 3))
    channels = [
        Image.fromarray(coarse[:, :, c].astype(np.float32)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        for c in range(3)
    ]
    stacked: Floats = np.stack([np.asarray(channel, np.float64) for channel in channels], axis=2)
    return stacked.clip(0, 255)


def _color(under: Floats, rng: np.random.Generator) -> Floats:
    """Return a colour that is lighter than what lies under it, as the digits' own dataset has them."""
    color: Floats = under + rng.uniform(_LEAST_CONTRAST, 200, 3)
    return color.clip(0, 255)


def _resized(ink: Floats, side: int) -> Floats:
    from PIL import Image

    found = Image.fromarray(ink.astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    return np.array(np.asarray(found).clip(0, 1), np.float64)


def _annotation(number: int, image: int, label: int, mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return an object as COCO writes it, its mask as run lengths, column by column, that begin with zeros."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
    flat = mask.T.reshape(-1)
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "iscrowd": 0,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(mask.sum()),
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, *counts] if flat[0] else counts},
    }
