"""Images that a dataset has more than once, by their content: a network is tested on what it was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
