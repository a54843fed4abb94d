"""Images for tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def jpeg(height: int, width: int, *, seed: int = 0, mode: str = "RGB", **options: object) -> bytes:
    """Return a JPEG of smooth noise: decoders agree on it as on a photograph."""
    noise = np.random.default_rng(seed).integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def photo_files() -> dict[str, bytes]:
    """Return an image folder of 24 training and 10 validation images of many sizes in two classes: name to bytes."""
    rng = np.random.default_rng(5)
    files: dict[str, bytes] = {}
    for split, count in (("train", 12), ("val", 5)):
        for label in ("cat", "dog"):
            for i in range(count):
                h, w = rng.integers(200, 500, 2)
                files[f"{split}/{label}/{i:02d}.JPEG"] = jpeg(int(h), int(w), seed=len(files))
    return files
