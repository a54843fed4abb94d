"""Which samples go into which shard: decided from the listing alone, so that shards can be made independently.

The training samples are dealt out to the shards in turn, as cards are. So every shard holds a fair share of every
class; an order that shuffles blocks of shards relies on that. Within a shard they keep the source's order, so that a
worker reads the source forwards. Other splits are cut into consecutive parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resnet_pipeline.sources.catalogue import Entry

SHARD_BYTES = 256 * 2**20
AVERAGED_IMAGES = 10_000
"""The mean image and the colours' covariance are those of this many training images, evenly spaced."""

TAR_OVERHEAD = 3 * 512  # two headers and a small JSON member


@dataclass(frozen=True)
class Shard:
    """What one shard is made from; ``averaged`` says for each entry whether its pixels go into the statistics."""

    split: str
    file: str
    entries: list[Entry]
    averaged: list[bool]


def plan_shards(entries: Sequence[Entry], shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Return the shards of all splits, each of about ``shard_bytes``, the training split's first.

    Example: ``[shard.file for shard in plan_shards(catalogue.entries)]``
    """
    splits: dict[str, list[Entry]] = {"train": []}
    for entry in entries:
        splits.setdefault(entry.split, []).append(entry)
    averaged = {id(entry) for entry in averaged_entries(entries)}
    shards = []
    for split, listed in splits.items():
        parts = _dealt(listed, shard_bytes) if split == "train" else _cut(listed, shard_bytes)
        for number, part in enumerate(parts):
            marks = [id(entry) in averaged for entry in part]
            shards.append(Shard(split, f"{split}-{number:05d}.tar", part, marks))
    return shards


def averaged_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Return the training entries whose pixels make the statistics, in the source's order.

    Of a validation set alone these are its own.
    """
    training = [entry for entry in entries if entry.split == "train"] or list(entries)
    count = min(len(training), AVERAGED_IMAGES)
    return [training[i * len(training) // count] for i in range(count)]


def packed_bytes(entries: Sequence[Entry]) -> int:
    """Return about how many bytes entries take in a shard."""
    return sum(-(-entry.member.size // 512) * 512 + TAR_OVERHEAD for entry in entries)


def _dealt(entries: list[Entry], shard_bytes: int) -> list[list[Entry]]:
    count = max(1, min(len(entries), -(-packed_bytes(entries) // shard_bytes)))  # a source may say any size
    return [part for number in range(count) if (part := entries[number::count])]


def _cut(entries: list[Entry], shard_bytes: int) -> list[list[Entry]]:
    parts: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if size >= shard_bytes:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += packed_bytes([entry])
    return parts
