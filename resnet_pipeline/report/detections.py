"""Pictures of what a detector finds: boxes with labels and scores, masks as tints, what is really there as outlines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_SIDE, _GAP, _LINE, _COLUMNS = 320, 10, 22, 4
_PAPER, _INK, _TRUTH = (255, 255, 255), (30, 30, 30), (255, 255, 255)
_COLORS = (
    (230, 60, 60), (50, 120, 220), (40, 160, 80), (240, 150, 30), (150, 70, 190),
    (20, 170, 180), (220, 90, 160), (130, 110, 40), (90, 90, 220), (110, 160, 20),
)  # fmt: skip
_TINT = 0.45


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An object in a picture: its box (left, top, right, bottom) in pixels, its class, the text beside it, its mask.

    ``mask`` is uint8 [height, width] of the whole image, None for none.
    """

    box: Sequence[float]
    label: int
    text: str
    mask: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image (RGB), what was found in it, and what is there, if it is known."""

    image: Image.Image
    found: Sequence[Shown]
    truth: Sequence[Sequence[float]] = field(default_factory=tuple)
    caption: str = ""


def drawn(picture: Picture, side: int = _SIDE) -> Image.Image:
    """Return a picture whose longer side has ``side`` pixels, RGB: boxes in their class's colour, the truth in white.

    Example: ``drawn(Picture(image=image, found=[shown])).save("found.png")``
    """
    scale = side / max(picture.image.size)
    size = (max(1, round(picture.image.width * scale)), max(1, round(picture.image.height * scale)))
    pixels = np.asarray(picture.image.convert("RGB").resize(size), np.float64).copy()
    for each in picture.found:
        if each.mask is not None:
            inside = np.asarray(Image.fromarray(each.mask * 255).resize(size, Image.Resampling.NEAREST)) > 0
            pixels[inside] += _TINT * (np.array(_color(each.label)) - pixels[inside])
    shown = Image.fromarray(pixels.round().astype(np.uint8))
    draw, font = ImageDraw.Draw(shown), ImageFont.load_default(12)
    for box in picture.truth:
        draw.rectangle(_scaled(box, scale), outline=_TRUTH, width=1)
    for each in picture.found:
        left, top, right, bottom = _scaled(each.box, scale)
        draw.rectangle((left, top, right, bottom), outline=_color(each.label), width=2)
        place = (left + 1, max(0.0, top - 14))
        draw.rectangle(draw.textbbox(place, each.text, font), fill=_color(each.label))
        draw.text(place, each.text, _PAPER, font)
    return shown


def detection_sheet(pictures: Sequence[Picture], *, title: str) -> Image.Image:
    """Return several pictures on one sheet, RGB, four in a row.

    Example: ``detection_sheet(pictures, title="scenes").save("found.png")``
    """
    rows, columns = -(-len(pictures) // _COLUMNS), min(len(pictures), _COLUMNS)
    cell = _SIDE + _LINE
    sheet = Image.new("RGB", (max(480, _GAP + columns * (_SIDE + _GAP)), _LINE + _GAP + rows * (cell + _GAP)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((_GAP, _GAP / 2), title, _INK, font)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, _COLUMNS)
        left, top = _GAP + column * (_SIDE + _GAP), _LINE + _GAP + row * (cell + _GAP)
        sheet.paste(drawn(picture), (left, top))
        draw.text((left, top + _SIDE + 3), picture.caption[:52], _INK, font)
    return sheet


def _color(label: int) -> tuple[int, int, int]:
    return _COLORS[label % len(_COLORS)]


def _scaled(box: Sequence[float], scale: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(side) * scale for side in box)
    return left, top, max(right - 1, left), max(bottom - 1, top)
