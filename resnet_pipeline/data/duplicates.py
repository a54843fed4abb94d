"""Images that a dataset has more than once, by content or by looks: a network is tested on what it was trained on."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

NEAR = 3
"""Bits of 64 in which the hashes of images that look alike may differ."""

_BAND = np.uint64(16)  # hashes of 4 bands that differ in 3 bits have a band in common
_NAMED = 100


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """How many contents stand in more than one split, and under more than one class; the first ones' keys."""

    across_splits: int = 0
    across_classes: int = 0
    split_keys: tuple[tuple[str, ...], ...] = ()
    class_keys: tuple[tuple[str, ...], ...] = ()

    def lines(self) -> list[str]:
        """Return a line for each kind that there is."""
        kinds = (
            (self.across_splits, "in more than one split", self.split_keys),
            (self.across_classes, "under more than one class", self.class_keys),
        )
        return [
            f"{count:,} images are {where}, as {' and '.join(keys[0][:3])}" for count, where, keys in kinds if count
        ]


def duplicates_of(
    checksums: npt.NDArray[np.uint64], splits: Sequence[str], labels: Sequence[int], keys: Sequence[str]
) -> Duplicates:
    """Return what samples with one checksum have in common; all arguments are by sample. A label of -1 is no class.

    With checksums of 64 bits two of a million differ unless the images are the same.
    """
    order = np.argsort(checksums, kind="stable")
    ordered = checksums[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    starts = again[np.flatnonzero(np.diff(again, prepend=-2) > 1)]
    across: list[tuple[str, ...]] = []
    mixed: list[tuple[str, ...]] = []
    for start in starts.tolist():
        end = int(np.searchsorted(ordered, ordered[start], "right"))
        samples = order[start:end].tolist()
        named = tuple(keys[i] for i in samples)
        if len({splits[i] for i in samples}) > 1:
            across.append(named)
        if len({labels[i] for i in samples if labels[i] >= 0}) > 1:
            mixed.append(named)
    return Duplicates(
        across_splits=len(across),
        across_classes=len(mixed),
        split_keys=tuple(sorted(across)[:_NAMED]),
        class_keys=tuple(sorted(mixed)[:_NAMED]),
    )


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """How many pairs of images of different splits, and of different classes, look alike; the most alike ones' keys."""

    across_splits: int
    across_classes: int
    split_keys: tuple[tuple[str, str], ...]
    class_keys: tuple[tuple[str, str], ...]

    def lines(self) -> list[str]:
        """Return a line for each kind that there is."""
        kinds = (
            (self.across_splits, "of different splits", self.split_keys),
            (self.across_classes, "of different classes", self.class_keys),
        )
        return [f"{count:,} pairs {of} look alike, as {' and '.join(keys[0])}" for count, of, keys in kinds if count]


def difference_hash(image: Image.Image) -> int:
    """Return 64 bits on how an image looks: whether it is brighter from column to column, at 9 × 8 pixels in grey.

    That is dHash (N. Krawetz, Kind of Like That, 2013): another size, compression or tone changes few bits of it, a
    crop or a mirror image most.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS, reducing_gap=3.0))
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")


def near_duplicates_of(
    hashes: npt.NDArray[np.uint64],
    checksums: npt.NDArray[np.uint64],
    splits: Sequence[str],
    labels: Sequence[int],
    keys: Sequence[str],
) -> NearDuplicates:
    """Return the pairs of samples that look alike and are not the same file; all arguments are by sample.

    Images of one brightness look like nothing. A label of -1 is no class.
    """
    split_of, label_of = np.unique(splits, return_inverse=True)[1], np.array(labels, np.int64)
    counts = {"splits": 0, "classes": 0}
    alike: dict[str, list[tuple[int, str, str]]] = {"splits": [], "classes": []}
    for one, others, bits in _near(hashes):
        apart = checksums[others] != checksums[one]
        differ = {
            "splits": apart & (split_of[others] != split_of[one]),
            "classes": apart & (label_of[others] != label_of[one]) & (label_of[others] >= 0) & (label_of[one] >= 0),
        }
        for kind, chosen in differ.items():
            counts[kind] += int(chosen.sum())
            for other, distance in zip(others[chosen].tolist(), bits[chosen].tolist(), strict=True):
                first, second = sorted((keys[one], keys[other]))
                alike[kind].append((distance, first, second))
            if len(alike[kind]) > 10 * _NAMED:
                alike[kind] = heapq.nsmallest(_NAMED, alike[kind])
    named = {kind: heapq.nsmallest(_NAMED, pairs) for kind, pairs in alike.items()}
    return NearDuplicates(
        across_splits=counts["splits"],
        across_classes=counts["classes"],
        split_keys=tuple((first, second) for _, first, second in named["splits"]),
        class_keys=tuple((first, second) for _, first, second in named["classes"]),
    )


def _near(hashes: npt.NDArray[np.uint64]) -> Iterator[tuple[int, npt.NDArray[np.intp], npt.NDArray[np.uint8]]]:
    """Yield a sample, later ones in some order that are up to NEAR bits from it, and how many; each pair once."""
    ones = np.bitwise_count(hashes)
    some = np.flatnonzero((ones > NEAR) & (ones < 64 - NEAR))  # the rest is nearly flat
    for band in range(4):
        values = (hashes[some] >> (_BAND * np.uint64(band))) & np.uint64(0xFFFF)
        order = some[np.argsort(values, kind="stable")]
        ordered = np.sort(values)
        ends = np.searchsorted(ordered, ordered, "right")
        for place in np.flatnonzero(ends > np.arange(len(order)) + 1).tolist():
            others = order[place + 1 : ends[place]]
            differing = hashes[others] ^ hashes[order[place]]
            bits = np.bitwise_count(differing)
            near = bits <= NEAR
            for before in range(band):  # found there
                near &= (differing >> (_BAND * np.uint64(before))) & np.uint64(0xFFFF) != 0
            if near.any():
                yield int(order[place]), others[near], bits[near]
