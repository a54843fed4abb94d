"""A contact sheet: training images with the cut window outlined, and beside each the crop that the network sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_SIDE, _GAP, _LINE, _COLUMNS = 224, 12, 24, 3
_PAPER, _INK, _OUTLINE = (255, 255, 255), (30, 30, 30), (255, 40, 40)


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image (RGB), the window (y, x, height, width) cut out of it, which may reach over its edge, and the crop."""

    image: Image.Image
    window: tuple[int, int, int, int]
    crop: Image.Image
    caption: str


def contact_sheet(examples: Sequence[Example], *, title: str, background: npt.ArrayLike) -> Image.Image:
    """Return the sheet, RGB, three examples in a row; ``background`` [3] fills what lies outside an image.

    Example: ``contact_sheet(examples, title="digits", background=(124, 117, 104)).save("crops.png")``
    """
    cell_width, cell_height = 2 * _SIDE + _GAP, _SIDE + _LINE
    rows = -(-len(examples) // _COLUMNS)
    columns = min(len(examples), _COLUMNS)
    width = _GAP + columns * (cell_width + 2 * _GAP)
    sheet = Image.new("RGB", (max(width, 480), _LINE + _GAP + rows * (cell_height + _GAP)), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    draw.text((_GAP, _GAP / 2), title, _INK, font)
    fill = tuple(int(v) for v in np.asarray(background))
    for number, example in enumerate(examples):
        row, column = divmod(number, _COLUMNS)
        left, top = _GAP + column * (cell_width + 2 * _GAP), _LINE + _GAP + row * (cell_height + _GAP)
        outlined = _outlined(example, fill)
        sheet.paste(outlined, (left + (_SIDE - outlined.width) // 2, top + (_SIDE - outlined.height) // 2))
        crop = example.crop.resize((_SIDE, _SIDE), _filter(example.crop.width))
        sheet.paste(crop, (left + _SIDE + _GAP, top))
        draw.text((left, top + _SIDE + 3), _fitted(example.caption, font, cell_width), _INK, font)
    return sheet


def _outlined(example: Example, fill: tuple[int, ...]) -> Image.Image:
    """Return the image, with room for a window that reaches over its edge, at most _SIDE², the window outlined."""
    image, (y, x, height, width) = example.image, example.window
    left, top = min(x, 0), min(y, 0)
    right, bottom = max(x + width, image.width), max(y + height, image.height)
    canvas = Image.new("RGB", (right - left, bottom - top), fill)
    canvas.paste(image, (-left, -top))
    scale = _SIDE / max(canvas.size)
    size = (max(1, round(canvas.width * scale)), max(1, round(canvas.height * scale)))
    shown = canvas.resize(size, _filter(max(canvas.size)))
    first = (x - left) * scale, (y - top) * scale
    last = (x - left + width) * scale - 1, (y - top + height) * scale - 1
    # of a line of pixels, made smaller, a window may be thinner than one
    ImageDraw.Draw(shown).rectangle([first, tuple(map(max, first, last))], outline=_OUTLINE, width=2)
    return shown


def _filter(side: int) -> Image.Resampling:
    """Small images keep their pixels visible."""
    return Image.Resampling.NEAREST if side < _SIDE / 2 else Image.Resampling.LANCZOS


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while font.getlength(text) > width and len(text) > 1:
        text = f"{text[:-2]}…"
    return text
