"""What datasets and clusters of some sizes ask of each part, and which part gives way first; for scaling.py --capacity.

Each constant was measured on two cores of an AMD EPYC, or is said to be assumed; docs/RESULTS.md has the commands. They
are taken to grow in proportion, which holds for bytes and counts, and is a guess for times on other machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SHARD_BYTES = 256 * 2**20
NODE_GPUS, NODE_CORES, NODE_BYTES_PER_SECOND, NODE_MEMORY = 8, 100, 25e9 / 8, 2e12  # assumed
PROCESSES_OF_A_GPU = 4  # that open the dataset: a training worker, a test's, and some to spare

INDEX_BYTES = 13.4  # of a sample: index.parquet of CIFAR-10's 60,000 (checksums.parquet has 8)
MAPPED_BYTES = 92  # of a sample, once on a node's disk and in its page cache
OPENED_MIB, OPENED_MIB_PER_SHARD = 22.0, 95 / 165_000  # of a process's own; the second is the manifest's list
FIRST_SECONDS = 12.1 / 14e6  # of a sample: the processor time in which a node's first process writes the mapped tables
CATALOGUE_BYTES = 205  # of a sample, at the peak of staging's one process: benchmarks/catalogue.py
CATALOGUE_SECONDS = 140e-6  # of a sample, processor time of that process: most of it reads a tar file's headers
LISTED_PER_SECOND = 50_000  # objects of a bucket that staging lists: 1.33 million took 1.3 minutes, 2.95 times as long
STAGED_PER_SECOND = 147e6 / 2  # bytes of a core, with the audit
OBJECT_LIMIT = 5 * 2**40  # bytes of an object that is written in parts, as index and checksums are
ORDER_BYTES = 32  # of a sample while an order is sorted, up to 2**22 of them; beyond, none


@dataclass(frozen=True)
class Part:
    """What a part costs, as text; its limit; and how much of that it takes: from 1 on it gives way."""

    name: str
    cost: str
    limit: str
    load: float


def parts(samples: int, image_bytes: int, gpus: int, epoch_seconds: float) -> Iterator[Part]:
    """Yield what a dataset and a cluster ask of each part; ``epoch_seconds`` is an epoch's training."""
    nodes = max(1, gpus // NODE_GPUS)
    shards = samples * image_bytes / SHARD_BYTES
    index = INDEX_BYTES * samples
    own = (OPENED_MIB + OPENED_MIB_PER_SHARD * shards) * 2**20
    of_node = own * PROCESSES_OF_A_GPU * NODE_GPUS + MAPPED_BYTES * samples
    order = ORDER_BYTES * samples if samples <= 2**22 else 0
    catalogue = CATALOGUE_BYTES * samples
    listed = CATALOGUE_SECONDS * samples
    opening = FIRST_SECONDS * samples
    listing = samples / LISTED_PER_SECOND
    staging = samples * image_bytes / STAGED_PER_SECOND / (nodes * NODE_CORES)
    fetching = samples * image_bytes / (nodes * NODE_BYTES_PER_SECOND)
    yield Part("index file in the bucket", f"{index / 1e9:.2f} GB", "5 TiB, an object", index / OBJECT_LIMIT)
    yield Part("a process's own memory, opened", f"{own / 2**20:.0f} MiB", "1 GiB", own / 2**30)
    yield Part("an order's memory, while it is sorted", f"{order / 2**20:.0f} MiB", "1 GiB", order / 2**30)
    yield Part("a node's memory for all of these", f"{of_node / 1e9:.1f} GB", "2 TB", of_node / NODE_MEMORY)
    yield Part("first opening on a node", f"{opening:.0f} s", "10 min", opening / 600)
    yield Part("staging's catalogue, in one process", f"{catalogue / 1e9:.1f} GB", "64 GB", catalogue / 64e9)
    yield Part("staging's one process: list, index", f"{listed / 60:.0f} min", "a day", listed / 86400)
    yield Part("listing a bucket of single files", f"{listing / 60:.1f} min", "an hour", listing / 3600)
    yield Part("staging, 100 cores a node", f"{staging / 60:.1f} min", "a day", staging / 86400)
    yield Part(
        "first epoch, read at 25 Gbit/s a node", f"{fetching / 60:.1f} min", "computing it", fetching / epoch_seconds
    )


def print_capacity(image_bytes: int, epoch_seconds: dict[tuple[int, int], float]) -> None:
    """Print a table for each pair of samples and GPUs, given an epoch's seconds of training."""
    for (samples, gpus), seconds in epoch_seconds.items():
        found = list(parts(samples, image_bytes, gpus, seconds))
        print(f"\n{samples:,} images on {gpus} GPUs; an epoch of ResNet-50 computes for {seconds / 60:.2f} min")
        for part in found:
            print(
                f"  {part.name:38} {part.cost:>10} of {part.limit:20} {part.load:8.1%}"
                f"{'  GIVES WAY' * (part.load >= 1)}"
            )
        worst = max(found, key=lambda part: part.load)
        print(f"  first to give way: {worst.name}")
