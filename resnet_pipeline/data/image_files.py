"""Image files are opened here and nowhere else: by a closed set of parsers, and no larger than is allowed.

Pillow knows some fifty formats by their content, whatever the file is called; one of them starts Ghostscript. The set
here is that of torchvision's image folders, and GIF.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, ImageFile, UnidentifiedImageError

from resnet_pipeline.settings import settings

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file for; a JPEG of several pictures (MPO) counts as JPEG."""

_MEGA = 10**6


class ImageError(ValueError):
    """A file that is no image, a broken one, or one that is too large; its text is a line without a name."""


@dataclass(frozen=True)
class Limits:
    """How large one image may be: bytes of its file, and pixels. The default is that of the settings."""

    bytes: int = 256 * _MEGA
    pixels: int = 178 * _MEGA  # Pillow itself takes little more

    @classmethod
    def of_settings(cls) -> Limits:
        """Return the limits for files of the user's own."""
        now = settings()
        return cls(int(now.image_mb * _MEGA), int(now.image_megapixels * _MEGA))

    @classmethod
    def for_serving(cls) -> Limits:
        """Return the limits for what others send to a server."""
        now = settings()
        return cls(int(now.serving_image_mb * _MEGA), int(now.serving_image_megapixels * _MEGA))

    def check_bytes(self, size: int) -> None:
        """Raise ImageError for a file of too many bytes."""
        if size > self.bytes:
            raise ImageError(f"{size / _MEGA:,.1f} MB are more than the allowed {self.bytes / _MEGA:,.1f} MB")

    def check_pixels(self, width: int, height: int) -> None:
        """Raise ImageError for an image of too many pixels."""
        if width * height > self.pixels:
            raise ImageError(
                f"{width}×{height} pixels are too many: more than the allowed {self.pixels / _MEGA:,.4g} megapixels"
            )


DEFAULT_LIMITS = Limits()
ANY_SIZE = Limits(bytes=2**63 - 1)
"""For files that were looked at before."""


@contextmanager
def open_image(data: bytes, limits: Limits = ANY_SIZE) -> Iterator[ImageFile.ImageFile]:
    """Yield a file's first picture, not yet decoded; what goes wrong with it within the block is an ImageError.

    Nothing is decoded of an image beyond ``limits``.

    Example: ``with open_image(Path("a.jpg").read_bytes()) as image: image.convert("RGB")``
    """
    try:
        limits.check_bytes(len(data))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata; the pixels decide
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                limits.check_pixels(*image.size)
                yield image
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise ImageError("empty file" if not data else f"no image format that is read here ({known})") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError((str(error).splitlines() or [type(error).__name__])[0]) from None


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from a file's header, or None if it can't be read.

    Example: ``image_size(Path("a.jpg").read_bytes())``
    """
    try:
        with open_image(data) as image:
            return image.height, image.width
    except ImageError:
        return None
