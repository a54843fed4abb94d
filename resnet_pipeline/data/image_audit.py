"""Every image is decoded once, completely, before it is packed: a broken one would end a DALI pipeline later.

What comes out decodes everywhere: JPEGs in RGB or grey stay byte for byte as they are (grey is expanded when decoded);
anything else that can be read (CMYK JPEGs, PNG, BMP, GIF or WebP files under another name, palettes, 16 bits,
transparency, which is dropped) becomes an RGB JPEG of quality 95 without chroma subsampling. A file that is called .png
loses nothing: an 8-bit RGB or grey PNG stays as it is, anything else becomes an RGB PNG. EXIF orientation is ignored,
as by everyone who reads ImageNet.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

MOST_PIXELS = 200_000_000
"""Larger images are refused: decoding one takes more memory than all else together."""

QUALITY = 95
"""Of JPEGs that are encoded anew, without chroma subsampling."""

SMALL = 64
"""Up to this side, images of one size are averaged as they are; larger ones as the paper's 224×224 centre crops."""


@dataclass(frozen=True)
class Audited:
    """One image: its size, the bytes that replace the original's where it was converted, or why it was refused."""

    width: int = 0
    height: int = 0
    replacement: bytes | None = None
    note: str = ""
    refused: bool = False
    resized: bool = False


@dataclass
class PixelSums:
    """Exact sums over averaged images: RGB [3], outer products [3, 3], the images themselves [H, W, 3]; int64."""

    side: tuple[int, int]
    images: int = 0
    pixels: int = 0
    rgb: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, dtype=np.int64))
    outer: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 3), dtype=np.int64))
    image: npt.NDArray[np.int64] | None = None
    whole: bool = True

    def add(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Add an image uint8 [H, W, 3]; one of another size than ``side`` counts for the colours alone."""
        flat = pixels.reshape(-1, 3).astype(np.float64)  # exact: sums stay far below 2**53
        self.images += 1
        self.pixels += len(flat)
        self.rgb += flat.sum(0).astype(np.int64)
        self.outer += np.rint(flat.T @ flat).astype(np.int64)
        if pixels.shape[:2] == self.side:
            self.image = pixels.astype(np.int64) if self.image is None else self.image + pixels
        else:
            self.whole = False

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the sums as arrays for a file."""
        numbers = np.array([*self.side, self.images, self.pixels, self.whole], dtype=np.int64)
        image = np.zeros(0, np.int32) if self.image is None else self.image.astype(np.int32)  # of 10,000 images at most
        return {"numbers": numbers, "rgb": self.rgb, "outer": self.outer, "image": image}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> PixelSums:
        """Return the sums of ``to_arrays``."""
        height, width, images, pixels, whole = arrays["numbers"].tolist()
        image = arrays["image"].astype(np.int64) if arrays["image"].size else None
        return cls((height, width), images, pixels, arrays["rgb"], arrays["outer"], image, bool(whole))

    def merge(self, other: PixelSums) -> None:
        """Add another's sums."""
        self.images += other.images
        self.pixels += other.pixels
        self.rgb += other.rgb
        self.outer += other.outer
        self.whole &= other.whole
        if other.image is not None:
            self.image = other.image if self.image is None else self.image + other.image


def audit(data: bytes, *, png: bool = False, max_shorter_side: int | None = None) -> tuple[Audited, Image.Image | None]:
    """Decode one file; return what is to be packed, and the decoded image where it is good.

    ``png``: the file is called .png, so that an RGB or grey PNG stays as it is and anything else becomes a PNG.
    An image whose shorter side is above ``max_shorter_side`` is made smaller, to that.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata; the pixels decide
            image: Image.Image = Image.open(io.BytesIO(data))
            if image.width * image.height > MOST_PIXELS:
                return Audited(note=f"{image.width}×{image.height} pixels are too many", refused=True), None
            image.load()
            note, resized = "", False
            if not _stays(image, png):
                kind = "PNG" if png else "JPEG"
                note = f"{image.format} in mode {image.mode}, converted to an RGB {kind}"
                image = _rgb(image)
            if max_shorter_side and min(image.size) > max_shorter_side:
                image, resized = _shrunk(image, max_shorter_side), True
            replacement = _encoded(image, png) if note or resized else None
    except UnidentifiedImageError:
        return Audited(note="empty file" if not data else "no image format that is known", refused=True), None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Audited(note=reason, refused=True), None
    return Audited(image.width, image.height, replacement, note, resized=resized), image


def centre_crop(image: Image.Image, *, shorter: int = 256, crop: int = 224) -> Image.Image:
    """Return the centre crop of an image resized to a shorter side, RGB (the paper's view for its mean image)."""
    image = image.convert("RGB")
    factor = min(image.size) / shorter
    side = crop * factor
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((crop, crop), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from a file's header, or None where it can't be read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError):
        return None


def _stays(image: Image.Image, png: bool) -> bool:
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        return False
    return image.format == ("PNG" if png else "JPEG")


def _shrunk(image: Image.Image, shorter: int) -> Image.Image:
    factor = shorter / min(image.size)
    size = (max(shorter, round(image.width * factor)), max(shorter, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _encoded(image: Image.Image, png: bool) -> bytes:
    buffer = io.BytesIO()
    if png:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 bits and more: Pillow's own conversion would cut, not scale
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        image = Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("P", "PA", "LA", "RGBa", "La"):
        image = image.convert("RGBA")
    return image.convert("RGB")
