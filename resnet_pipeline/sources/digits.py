"""The built-in dataset: scikit-learn's 1,797 handwritten digits, written out as JPEGs in ImageNet's folder layout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from resnet_pipeline.storage.local import LocalStorage

SIDE = 24
"""Pixels per side: three times the originals' 8, so that crops at several scales differ."""

VALIDATION_SHARE = 5
"""Every fifth image of a class, in scikit-learn's order, is for validation: 1,433 for training, 364 held out."""


def write_digits(folder: Path) -> None:
    """Write ``folder/{train,val}/<digit>/NNNN.JPEG``; a folder that is there already is left as it is.

    HeldError if another process is writing it.

    Example: ``write_digits(Path("digits"))``
    """
    if folder.exists():
        return
    with LocalStorage(folder.parent).lease(f".{folder.name}.lock"):  # two would write into one folder
        if not folder.exists():
            _write_digits(folder)


def _write_digits(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    counts = dict.fromkeys(range(10), 0)
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "val" if counts[int(label)] % VALIDATION_SHARE == 0 else "train"
        counts[int(label)] += 1
        target = temporary / split / str(label) / f"{number:04d}.JPEG"
        target.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((pixels * 255 / 16).round().astype(np.uint8))
        grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB").save(target, quality=95)
        os.utime(target, (0, 0))  # written again, they are the same source
    temporary.rename(folder)
