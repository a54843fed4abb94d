"""Which sample stands where, and every random draw, as pure functions of (seed, epoch, position).

Nothing is carried from one batch to the next: a run goes on at any step, on any number of workers, with the same
samples and the same augmentation. All arithmetic is on unsigned 64-bit integers, so no library's generator can change
it. Positions count the samples of an endless stream: position // n is the epoch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: UInt64) -> UInt64:
    """Scramble 64-bit integers, one to one: the finaliser of SplitMix64 (Steele, Lea, Flood, 2014)."""
    with np.errstate(over="ignore"):
        x = (x + _GOLDEN).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniform(seed: int, positions: Int64, draw: int) -> npt.NDArray[np.float64]:
    """Return the draw number ``draw`` for each position of the stream: float64 [P], uniform in [0, 1)."""
    key = mix(np.array([seed], dtype=np.uint64))
    key = mix(key ^ np.uint64(draw + 1))
    bits = mix(mix(positions.astype(np.uint64) ^ key) ^ key)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def samples_at(positions: Int64, *, samples: int, seed: int) -> Int64:
    """Return the sample number at each position: in each epoch every sample exactly once, in a new order."""
    epochs = positions // samples
    result = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        result[here] = epoch_order(samples, seed, int(epoch))[positions[here] % samples]
    return result


@lru_cache(maxsize=2)
def epoch_order(samples: int, seed: int, epoch: int) -> Int64:
    """Return the permutation int64 [samples] of one epoch: sample numbers sorted by a key of (seed, epoch, number)."""
    key = mix(mix(np.array([seed], dtype=np.uint64)) ^ np.uint64(epoch))
    keys = mix(np.arange(samples, dtype=np.uint64) ^ key)
    order = np.argsort(keys, kind="stable").astype(np.int64)
    order.flags.writeable = False
    return order


def micro_batch_positions(step: int, micro: int, *, batch: int, micro_batch: int) -> Int64:
    """Return the positions int64 [micro_batch] of micro-batch ``micro`` of a step."""
    first = step * batch + micro * micro_batch
    return np.arange(first, first + micro_batch, dtype=np.int64)
