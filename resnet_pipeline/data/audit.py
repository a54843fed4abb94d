"""Every image is decoded once, completely, before it is packed: a broken one would end a DALI pipeline later.

What comes out decodes everywhere: JPEGs in RGB or grey stay byte for byte as they are (grey is expanded when decoded);
anything else that can be read (CMYK JPEGs, PNG, BMP, GIF or WebP files under any name, palettes, 16 bits,
transparency, which is dropped) becomes an RGB JPEG of quality 95 without chroma subsampling. EXIF orientation is
ignored, as by everyone who reads ImageNet.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

MOST_PIXELS = 200_000_000
"""Larger images are refused: decoding one takes more memory than all else together."""

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

    def merge(self, other: PixelSums) -> None:
        """Add another's sums."""
        self.images += other.images
        self.pixels += other.pixels
        self.rgb += other.rgb
        self.outer += other.outer
        self.whole &= other.whole
        if other.image is not None:
            self.image = other.image if self.image is None else self.image + other.image


def audit(data: bytes) -> tuple[Audited, Image.Image | None]:
    """Decode one file; return what is to be packed, and the decoded image where it is good."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata; the pixels decide
            image: Image.Image = Image.open(io.BytesIO(data))
            if image.width * image.height > MOST_PIXELS:
                return Audited(note=f"{image.width}×{image.height} pixels are too many", refused=True), None
            image.load()
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                return Audited(image.width, image.height), image
            found = f"{image.format} in mode {image.mode}"
            image = _rgb(image)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=95, subsampling=0)
    except UnidentifiedImageError:
        return Audited(note="empty file" if not data else "no image format that is known", refused=True), None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Audited(note=reason, refused=True), None
    return Audited(image.width, image.height, buffer.getvalue(), f"{found}, converted to an RGB JPEG"), image


def audit_chunk(
    files: Sequence[bytes], averaged: Sequence[bool], side: tuple[int, int] | None
) -> tuple[list[Audited], PixelSums]:
    """Audit a chunk of files in a worker process; sum up the pixels of those that are to be averaged.

    ``side`` (height, width) is that of small images of one size; None averages centre crops of 224×224.
    """
    results = []
    sums = PixelSums(side or (224, 224))
    for data, wanted in zip(files, averaged, strict=True):
        result, image = audit(data)
        results.append(result)
        if wanted and image is not None:
            sums.add(np.asarray(image.convert("RGB") if side else centre_crop(image)))
    return results, sums


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


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 bits and more: Pillow's own conversion would cut, not scale
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        image = Image.fromarray((values / top * 255).clip(0, 255).round().astype(np.uint8))
    if image.mode in ("P", "PA", "LA", "RGBa", "La"):
        image = image.convert("RGBA")
    return image.convert("RGB")
