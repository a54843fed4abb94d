"""What can only be read in sequence is copied, shard by shard, to files that workers then read like any other."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from resnet_pipeline.errors import UserError
from resnet_pipeline.progress import BYTES, progress
from resnet_pipeline.sources.catalogue import Catalogue
from resnet_pipeline.sources.entries import Entries
from resnet_pipeline.sources.members import Member
from resnet_pipeline.staging.shard_plan import Shard

_BUFFER = 256 * 2**10


def spooled(catalogue: Catalogue, shards: Sequence[Shard], folder: Path, largest: int) -> list[Shard]:
    """Read a catalogue once and return its shards with their members in ``folder``, a file for each shard.

    Members of more than ``largest`` bytes keep their size there and nothing else: they are refused unread. Raises
    UserError if the folder can't be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    place = np.full(len(catalogue.entries), -1)
    for number, shard in enumerate(shards):
        place[shard.numbers] = number
    wanted = catalogue.entries.part(np.flatnonzero(place >= 0))
    sizes_of = catalogue.entries.members.sizes
    laid_out = catalogue.entries.part(np.flatnonzero((place >= 0) & (sizes_of <= largest)))
    moved = [Entries() for _ in shards]
    buffers: dict[int, bytearray] = defaultdict(bytearray)
    sizes: dict[int, int] = defaultdict(int)
    total = int(sizes_of[laid_out.numbers].sum())
    contents = catalogue.read(laid_out)
    try:
        folder.mkdir(parents=True)
        with progress(f"laying out {catalogue.address}", total=total, unit=BYTES) as bar:
            for number, entry in zip(map(int, place[wanted.numbers]), wanted, strict=True):
                size = entry.member.size
                data = next(contents) if size <= largest else b""
                member = Member(entry.member.name, spool_file(shards[number]), sizes[number], len(data) or size)
                moved[number].append(replace(entry, member=member))
                sizes[number] += len(data)
                buffers[number] += data
                bar.advance(len(data))
                if len(buffers[number]) >= _BUFFER:
                    _append(folder / member.file, buffers.pop(number))
        for number, buffer in buffers.items():
            _append(folder / spool_file(shards[number]), buffer)
    except OSError as error:
        raise UserError(f"{folder} can't be written: {error.strerror or error}") from None
    return [replace(shard, entries=entries) for shard, entries in zip(shards, moved, strict=True)]


def spool_file(shard: Shard) -> str:
    """Return the name of a shard's file."""
    return f"{shard.file}.raw"


def _append(path: Path, data: bytearray) -> None:
    with path.open("ab") as file:  # opened each time: there may be more shards than files a process may open
        file.write(data)
