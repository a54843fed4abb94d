"""Which sample stands where, and every random draw, as pure functions of (seed, epoch, position).

No state is carried from one batch to the next. So a run resumes at any step, on any number of workers, with the same
samples and the same augmentation. All arithmetic is on unsigned 64-bit integers, so no library's generator can change
it. Positions count the samples of an endless stream: position // n is the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

SORTED_UP_TO = 2**22
"""Splits of more samples than this have an order that is computed for each position, and kept nowhere."""


def mix(x: UInt64) -> UInt64:
    """Scramble 64-bit integers, one to one: the finaliser of SplitMix64 (Steele, Lea, Flood, 2014)."""
    with np.errstate(over="ignore"):
        x = (x + _GOLDEN).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniform(seed: int, positions: Int64, draw: int) -> npt.NDArray[np.float64]:
    """Return the draw number ``draw`` for each position of the stream: float64 [P], uniform in [0, 1).

    >>> uniform(0, np.arange(3), 0).round(3).tolist()
    [0.5, 0.528, 0.095]
    """
    key = mix(np.array([seed], dtype=np.uint64))
    key = mix(key ^ np.uint64(draw + 1))
    bits = mix(mix(positions.astype(np.uint64) ^ key) ^ key)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@dataclass(frozen=True, eq=False)
class Blocks:
    """What a block-shuffled order needs to know: the shard of each sample, int64 [samples], and shards in a block."""

    shards: Int64
    size: int

    @cached_property
    def counts(self) -> Int64:
        """The samples of each shard: int64 [shards]."""
        return np.bincount(self.shards).astype(np.int64)

    @cached_property
    def _order(self) -> Int64 | None:
        """The samples sorted by shard, int64 [samples]; None if they lie so, as those of an index do."""
        sorted_already = bool((self.shards[1:] >= self.shards[:-1]).all())
        return None if sorted_already else np.argsort(self.shards, kind="stable").astype(np.int64)

    def of_epoch(self, seed: int, epoch: int) -> list[Int64]:
        """Return the shards of each block of an epoch, in the order of reading: all shards, shuffled, then cut."""
        present = np.flatnonzero(self.counts)
        keys = mix(present.astype(np.uint64) ^ mix(_epoch_key(seed, epoch)))
        shuffled = present[np.argsort(keys, kind="stable")].astype(np.int64)
        return [shuffled[start : start + self.size] for start in range(0, len(shuffled), self.size)]

    def samples_of(self, shards: Int64) -> Int64:
        """Return the numbers of the samples that lie in some shards: int64 [N], shard by shard."""
        ends = np.cumsum(self.counts)
        ranges = [np.arange(ends[shard] - self.counts[shard], ends[shard]) for shard in shards]
        found = np.concatenate(ranges)
        return found if self._order is None else self._order[found]


@dataclass(frozen=True)
class Stretch:
    """The positions from ``start`` up to ``stop``, and the shards that their samples lie in."""

    start: int
    stop: int
    shards: tuple[int, ...]


def samples_at(positions: Int64, *, samples: int, seed: int, blocks: Blocks | None = None) -> Int64:
    """Return the sample number at each position: in each epoch every sample exactly once, in a new order.

    The order is a permutation of the whole split or, with ``blocks``, of the samples within each block of shards: then
    no more than one block is read at a time, two at a block's end.

    >>> samples_at(np.arange(8), samples=4, seed=0).tolist()
    [0, 1, 3, 2, 3, 0, 1, 2]
    """
    epochs = positions // samples
    result = np.empty_like(positions)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        within = positions[here] % samples
        if blocks is not None:
            result[here] = _in_blocks(within, seed, epoch, blocks)
        elif samples > SORTED_UP_TO:
            result[here] = permuted(within, samples, _epoch_key(seed, epoch))
        else:
            result[here] = epoch_order(samples, seed, epoch)[within]
    return result


@lru_cache(maxsize=4)
def epoch_order(samples: int, seed: int, epoch: int) -> Int64:
    """Return the permutation int64 [samples] of one epoch: sample numbers sorted by a key of (seed, epoch, number).

    >>> epoch_order(5, seed=0, epoch=1).tolist()
    [3, 0, 1, 2, 4]
    """
    order = np.argsort(_keys(np.arange(samples), seed, epoch), kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def permuted(positions: Int64, samples: int, key: UInt64) -> Int64:
    """Return what a permutation of 0 … samples − 1, chosen by a key uint64 [1], makes of some positions, int64 [P].

    It needs no memory of its own: six rounds of a Feistel network (Luby and Rackoff, 1988) permute the least power of
    four that has room for all samples, and what falls outside of them is permuted again (Black and Rogaway, 2002).

    >>> permuted(np.arange(5), 5, np.array([7], dtype=np.uint64)).tolist()
    [0, 4, 3, 2, 1]
    """
    half = (max(samples - 1, 1).bit_length() + 1) // 2
    shift, mask = np.uint64(half), np.uint64(2**half - 1)
    rounds = [mix(key ^ np.uint64(number + 1)) for number in range(6)]
    result = positions.astype(np.uint64)
    outside = np.ones(len(result), dtype=bool)
    while outside.any():
        left, right = result[outside] >> shift, result[outside] & mask
        for round_key in rounds:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        result[outside] = left << shift | right
        outside = result >= samples
    return result.astype(np.int64)


def _in_blocks(within: Int64, seed: int, epoch: int, blocks: Blocks) -> Int64:
    """Return the samples at some places of an epoch that is shuffled within blocks: one block's order at a time."""
    parts = _blocks_of(blocks, seed, epoch)
    ends = np.cumsum([blocks.counts[shards].sum() for shards in parts])
    numbers = np.searchsorted(ends, within, side="right")
    result = np.empty_like(within)
    for number in np.unique(numbers).tolist():
        here = numbers == number
        start = ends[number - 1] if number else 0
        result[here] = _block_order(blocks, seed, epoch, number)[within[here] - start]
    return result


@lru_cache(maxsize=4)
def _blocks_of(blocks: Blocks, seed: int, epoch: int) -> list[Int64]:
    return blocks.of_epoch(seed, epoch)


@lru_cache(maxsize=4)
def _block_order(blocks: Blocks, seed: int, epoch: int, number: int) -> Int64:
    """Return the samples of one block of an epoch in their order, int64 [N]: by the same key as without blocks."""
    samples = blocks.samples_of(_blocks_of(blocks, seed, epoch)[number])
    order: Int64 = samples[np.argsort(_keys(samples, seed, epoch), kind="stable")]
    order.flags.writeable = False
    return order


def _keys(samples: Int64, seed: int, epoch: int) -> UInt64:
    return mix(samples.astype(np.uint64) ^ _epoch_key(seed, epoch))


def stretches(first: int, last: int, *, seed: int, blocks: Blocks) -> Iterator[Stretch]:
    """Yield the blocks that the positions from ``first`` up to ``last`` lie in, in the order of reading."""
    samples, start = len(blocks.shards), first // len(blocks.shards) * len(blocks.shards)
    while start < last:
        for shards in blocks.of_epoch(seed, start // samples):
            stop = start + int(blocks.counts[shards].sum())
            if stop > first and start < last:
                yield Stretch(start, stop, tuple(shards.tolist()))
            start = stop


def stretches_along(shards: Int64, most: int) -> list[Stretch]:
    """Cut a sequence of samples, given by their shards, into stretches of at most ``most`` shards each."""
    found: list[Stretch] = []
    start, seen = 0, dict[int, None]()
    changes = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist()] if len(shards) else []
    for at in changes:
        shard = int(shards[at])
        if shard not in seen and len(seen) == most:
            found.append(Stretch(start, at, tuple(seen)))
            start, seen = at, {}
        seen[shard] = None
    return [*found, Stretch(start, len(shards), tuple(seen))] if seen else []


def _epoch_key(seed: int, epoch: int) -> UInt64:
    return mix(mix(np.array([seed], dtype=np.uint64)) ^ np.uint64(epoch))


def micro_batch_positions(step: int, micro: int, *, batch: int, micro_batch: int) -> Int64:
    """Return the positions int64 [micro_batch] of micro-batch ``micro`` of a step.

    >>> micro_batch_positions(2, 1, batch=8, micro_batch=4).tolist()
    [20, 21, 22, 23]
    """
    first = step * batch + micro * micro_batch
    return np.arange(first, first + micro_batch, dtype=np.int64)
