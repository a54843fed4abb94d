"""Which samples go into which shard: decided from the listing alone, so that shards can be made independently.

The training samples are dealt out to the shards in turn, as cards are. So every shard holds a fair share of every
class; an order that shuffles blocks of shards relies on that. Within a shard they keep the source's order, so that a
worker reads the source forwards. Other splits are cut into consecutive parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from resnet_pipeline.sources.columns import Numbers
from resnet_pipeline.sources.entries import Entries, Entry

SHARD_BYTES = 256 * 2**20
AVERAGED_IMAGES = 10_000
"""The mean image and the colours' covariance are those of this many training images, evenly spaced."""

TAR_OVERHEAD = 3 * 512  # two headers and a small JSON member


@dataclass(frozen=True)
class Shard:
    """What one shard is made from; ``averaged`` says for each entry whether its pixels go into the statistics.

    ``numbers`` int64 [N] are those of the entries in the catalogue.
    """

    split: str
    file: str
    entries: Sequence[Entry]
    averaged: Sequence[int]
    numbers: Numbers = field(compare=False)


def plan_shards(entries: Sequence[Entry], shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Return the shards of all splits, each of about ``shard_bytes``, the training split's first.

    Example: ``[shard.file for shard in plan_shards(catalogue.entries)]``
    """
    columns = Entries.of(entries)
    averaged = np.zeros(len(columns), bool)
    averaged[averaged_numbers(columns)] = True
    packed = _packed_sizes(columns.members.sizes)
    shards = []
    for split in dict.fromkeys(["train", *columns.splits.texts]):
        numbers = columns.numbers_of(split)
        parts = _dealt(numbers, packed, shard_bytes) if split == "train" else _cut(numbers, packed, shard_bytes)
        for count, part in enumerate(parts):
            file = f"{split}-{count:05d}.tar"
            shards.append(Shard(split, file, columns.part(part), averaged[part].tobytes(), part))
    return shards


def averaged_numbers(entries: Entries) -> Numbers:
    """Return the numbers of the training entries whose pixels make the statistics, int64 [N], in the source's order.

    Of a validation set alone these are its own.
    """
    training = entries.numbers_of("train")
    if not len(training):
        training = np.arange(len(entries))
    count = min(len(training), AVERAGED_IMAGES)
    return training[np.arange(count) * len(training) // max(1, count)]


def packed_bytes(sizes: Numbers) -> int:
    """Return about how many bytes entries of some sizes, int64 [N], take in shards."""
    return total(_packed_sizes(sizes))


def total(sizes: npt.NDArray[np.uint64]) -> int:
    """Return the sum of sizes uint64 [N], however large: a source may say any.

    >>> total(np.array([2**63, 2**63], np.uint64)) == 2**64
    True
    """
    half = np.uint64(32)
    return (int((sizes >> half).sum()) << 32) + int((sizes & np.uint64(2**32 - 1)).sum())


def _packed_sizes(sizes: Numbers) -> npt.NDArray[np.uint64]:
    block = np.uint64(512)
    return (sizes.astype(np.uint64) + np.uint64(511)) // block * block + np.uint64(TAR_OVERHEAD)


def _dealt(numbers: Numbers, packed: npt.NDArray[np.uint64], shard_bytes: int) -> list[Numbers]:
    count = max(1, min(len(numbers), -(-total(packed[numbers]) // shard_bytes)))
    return [part for first in range(count) if len(part := numbers[first::count])]


def _cut(numbers: Numbers, packed: npt.NDArray[np.uint64], shard_bytes: int) -> list[Numbers]:
    starts, size = [0], 0
    for place, of_entry in enumerate(map(int, packed[numbers])):
        if size >= shard_bytes:
            starts.append(place)
            size = 0
        size += of_entry
    return np.split(numbers, starts[1:])
