"""Encoded images in memory with a dataset's face, so that the loaders and the evaluation take them as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resnet_pipeline.data.dataset import Dataset, Split
from resnet_pipeline.data.shard_reader import LocalShards

IMAGES = "images"
"""The one split of an ``EncodedDataset``."""


class EncodedSplit(Split):
    """Images as ``audit`` passed them; their labels are −1, not known."""

    def __init__(self, images: Sequence[bytes], sizes: Sequence[tuple[int, int]], names: Sequence[str]) -> None:
        self._images = [np.frombuffer(image, dtype=np.uint8) for image in images]
        self.keys = list(names)
        self.height, self.width = np.array(sizes, dtype=np.int32).reshape(-1, 2).T
        self.labels = np.full(len(self._images), -1, dtype=np.int64)
        self.shards, self.checksums = [], None
        self.shard = np.zeros(len(self._images), dtype=np.int64)
        self.files = LocalShards(Path(), [], newest=0)  # nothing to bring

    def key_of(self, sample: int) -> str:
        """Return a sample's name."""
        return self.keys[sample]

    def shard_of(self, sample: int) -> str:
        """Return where a sample lies: in no shard."""
        return "memory"

    def _view(self, sample: int) -> npt.NDArray[np.uint8]:
        return self._images[sample]


class EncodedDataset(Dataset):
    """A dataset of one split, ``images``, that lies in memory: encoded images, their (height, width), their names."""

    def __init__(
        self, images: Sequence[bytes], sizes: Sequence[tuple[int, int]], names: Sequence[str], classes: Sequence[str]
    ) -> None:
        self.path, self.name, self.fingerprint = Path(), "images in memory", ""
        self.classes = list(classes)
        self.splits = {IMAGES: EncodedSplit(images, sizes, names)}
