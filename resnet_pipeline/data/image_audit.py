"""Every image is decoded once, completely, before it is packed: a broken one would end a DALI pipeline later.

What comes out decodes everywhere: JPEGs in RGB or grey stay byte for byte as they are (grey is expanded when decoded);
anything else that can be read (CMYK JPEGs, PNG, BMP, GIF or WebP files under another name, palettes, 16 bits,
transparency, which is dropped) becomes an RGB JPEG of quality 95 without chroma subsampling. A file that is called .png
loses nothing: an RGB or 8-bit grey PNG stays as it is, anything else becomes an RGB PNG. EXIF orientation is ignored,
as by everyone who reads ImageNet.

Grey values of more than 8 bits are divided by what white is in their format, never by what an image happens to hold:
65535 for 16 bits, 4095 for a TIFF of 12. Floats and integers of 32 bits say nothing about white; without ``max_value``
they are refused.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin

from resnet_pipeline.data.image_files import DEFAULT_LIMITS, ImageError, Limits, open_image

QUALITY = 95
"""Of JPEGs that are encoded anew, without chroma subsampling."""

SMALL = 64
"""Up to this side, images of one size are averaged as they are; larger ones as the paper's 224×224 centre crops."""

_COLOURS = ("RGB", "RGBA", "LA")  # what Pillow reads from 16 bits as 8, by their higher byte

_STRIP = 2**18  # pixels that are computed with at once: in float64 they take 24 bytes each


@dataclass(frozen=True)
class Audited:
    """One image: its size, the bytes that replace the original's if it was converted, or why it was refused."""

    width: int = 0
    height: int = 0
    replacement: bytes | None = None
    note: str = ""
    refused: bool = False
    resized: bool = False


@dataclass
class PixelSums:
    """Exact sums over averaged images: RGB [3], outer products [3, 3], the images themselves [H, W, 3]; int64.

    ``same_size``: all of them have the size ``side`` (height, width).
    """

    side: tuple[int, int]
    images: int = 0
    pixels: int = 0
    rgb: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, dtype=np.int64))
    outer: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 3), dtype=np.int64))
    image: npt.NDArray[np.int64] | None = None
    same_size: bool = True

    def add(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Add an image uint8 [H, W, 3]; one of another size than ``side`` counts for the colours alone."""
        flat = pixels.reshape(-1, 3)
        self.images += 1
        self.pixels += len(flat)
        for start in range(0, len(flat), _STRIP):
            strip = flat[start : start + _STRIP].astype(np.float64)  # exact: sums stay far below 2**53
            self.rgb += strip.sum(0).astype(np.int64)
            self.outer += np.rint(strip.T @ strip).astype(np.int64)
        if pixels.shape[:2] == self.side:
            self.image = pixels.astype(np.int64) if self.image is None else self.image + pixels
        else:
            self.same_size = False

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the sums as arrays for a file."""
        numbers = np.array([*self.side, self.images, self.pixels, self.same_size], dtype=np.int64)
        image = np.zeros(0, np.int32) if self.image is None else self.image.astype(np.int32)  # of 10,000 images at most
        return {"numbers": numbers, "rgb": self.rgb, "outer": self.outer, "image": image}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> PixelSums:
        """Return the sums of ``to_arrays``."""
        height, width, images, pixels, same_size = arrays["numbers"].tolist()
        image = arrays["image"].astype(np.int64) if arrays["image"].size else None
        return cls((height, width), images, pixels, arrays["rgb"], arrays["outer"], image, bool(same_size))

    def merge(self, other: PixelSums) -> None:
        """Add another's sums."""
        self.images += other.images
        self.pixels += other.pixels
        self.rgb += other.rgb
        self.outer += other.outer
        self.same_size &= other.same_size
        if other.image is not None:
            self.image = other.image if self.image is None else self.image + other.image


def audit(
    data: bytes,
    *,
    png: bool = False,
    max_shorter_side: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
    max_value: int | None = None,
    pixels: bool = True,
) -> tuple[Audited, Image.Image | None]:
    """Decode one file; return what is to be packed, and the decoded image if it is good.

    Without ``pixels`` the second is None, and of a JPEG that stays as it is all of its codes are decoded, but only an
    eighth of its pixels a side is computed: what is broken is in the codes.

    ``png``: the file is called .png, so that an RGB or grey PNG stays as it is and anything else becomes a PNG.
    An image whose shorter side is above ``max_shorter_side`` is made smaller, to that. ``max_value`` is what white is
    in images of more than 8 bits (4095 for 12 bits kept in 16); images beyond ``limits`` are refused.

    Example: ``audit(Path("a.jpg").read_bytes())[0].note``
    """
    try:
        with open_image(data, limits) as opened:
            (width, height), depth, resized = opened.size, _depth(opened), False
            shrinks = bool(max_shorter_side and min(width, height) > max_shorter_side)
            if not pixels and opened.format == "JPEG" and _stays(opened, png) and not shrinks:
                opened.draft(None, (max(1, width // 8), max(1, height // 8)))
                opened.load()
                return Audited(width, height), None
            opened.load()
            image, note = _converted(opened, depth, max_value, png)
            if max_shorter_side and shrinks:
                image, resized = _shrunk(image, max_shorter_side), True
            replacement = _encoded(image, png) if note or resized else None
    except ImageError as error:
        return Audited(note=str(error), refused=True), None
    return Audited(image.width, image.height, replacement, note, resized=resized), image if pixels else None


def centre_crop(image: Image.Image, *, shorter: int = 256, crop: int = 224) -> Image.Image:
    """Return the centre crop of an image resized to a shorter side, RGB (the paper's view for its mean image).

    >>> centre_crop(Image.new("L", (640, 480))).size
    (224, 224)
    """
    image = image.convert("RGB")
    factor = min(image.size) / shorter
    side = crop * factor
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((crop, crop), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _stays(image: ImageFile.ImageFile, png: bool) -> bool:
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


def _converted(image: ImageFile.ImageFile, depth: int, max_value: int | None, png: bool) -> tuple[Image.Image, str]:
    """Return the image in RGB, and what to say of that; as it is, and nothing, if it may stay."""
    if depth > 8 and max_value and image.mode in _COLOURS:
        raise ImageError("colours of 16 bits can't be scaled to another white: convert it to 8 bits")
    if _stays(image, png):
        return image, ""
    note = f"{image.format} in mode {image.mode}, converted to an RGB {'PNG' if png else 'JPEG'}"
    rgb: Image.Image = image
    if image.mode.startswith(("I", "F")):
        rgb = _scaled(image, _white(image, depth, max_value))
    elif image.mode in ("P", "PA", "LA", "RGBa", "La"):
        rgb = image.convert("RGBA")
    return rgb.convert("RGB"), note  # CMYK, YCbCr, Lab and grey as Pillow converts them


def _depth(image: ImageFile.ImageFile) -> int:
    """Return the bits of a value as the file has them, 8 also for fewer; of signed ones 32. Known before decoding."""
    if image.format == "PPM" and image.mode == "I":
        return 16  # Pillow scales what PPM's header calls white to this
    raw = "".join(str(tile.args) for tile in image.tile)
    if image.mode in ("I", "F"):
        return 32
    return next((bits for bits in (12, 16) if f";{bits}" in raw), 8)


def _white(image: ImageFile.ImageFile, depth: int, max_value: int | None) -> int:
    """Return the value of white in grey pixels of more than 8 bits; ImageError if nothing says what it is."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(262) == 0:
        raise ImageError("grey values of more than 8 bits in which 0 is white: convert it to 8 bits")
    if max_value:
        return max_value
    if depth < 32:
        return (1 << depth) - 1
    kind = "floating-point" if image.mode.startswith("F") else "integer"
    raise ImageError(f"{kind} pixels don't say what white is: say so with --max-value, or convert it to 8 bits")


def _scaled(image: Image.Image, white: int) -> Image.Image:
    """Return grey pixels divided by white as 8 bits; ImageError for one that is no number from 0 to white."""
    values = np.asarray(image)
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, _STRIP // max(1, image.width))
    for start in range(0, image.height, rows):
        strip = values[start : start + rows].astype(np.float64)
        darkest, brightest = float(strip.min()), float(strip.max())
        if not (darkest >= 0 and brightest <= white):  # not a number, too
            worst = darkest if not darkest >= 0 else brightest
            raise ImageError(f"it holds the value {worst:g}, but pixels reach from 0 (black) to {white} (white)")
        scaled[start : start + rows] = (strip / white * 255).round()
    return Image.fromarray(scaled)
