"""What staging takes in its one process for each sample, of memory and processor time: listing, plan, index, manifest.

Run: python benchmarks/catalogue.py [--samples 100000 400000] [--against CHECKOUT]
(CHECKOUT is another state of this repository, ``git worktree add CHECKOUT COMMIT``). A tar file of so many files
``train/<class>/<class>_<number>.JPEG`` of a byte each is listed, planned in shards of 2,400 samples, and its index and
manifest are written from records as workers write them; no image is decoded. Each number of samples is a process of its
own; what one more sample takes is the difference between the two. The table has bytes and microseconds of a sample.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CHILD = """
import json, resource, sys
from pathlib import Path
import numpy as np
from resnet_pipeline.data.image_audit import PixelSums
from resnet_pipeline.data.manifest import read_manifest
from resnet_pipeline.sources.layouts import read_catalogue
from resnet_pipeline.staging import area, manifest, shard_plan, shard_writer, stage
from resnet_pipeline.storage.local import LocalStorage
archive, made = Path(sys.argv[1]), Path(sys.argv[2])
found = {}
def note(name):
    used = resource.getrusage(resource.RUSAGE_SELF)
    found[name] = used.ru_maxrss * 1024, used.ru_utime + used.ru_stime
note("start")
catalogue = read_catalogue(LocalStorage(archive.parent), archive.name)
note("listed, its entries checked")
shards = shard_plan.plan_shards(catalogue.entries, 2_400 * 2_048)
note("planned")
destination = LocalStorage(made)
destination.write(area.LISTING, area.listing_of(catalogue))
note("listing kept")
def records():
    random = np.random.default_rng(1)
    for number, shard in enumerate(shards):
        sums = PixelSums((8, 8))
        if not number:
            sums.add(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        rows = [(i, 512 + 112_000 * i, 110_000, 500, 375) for i in range(len(shard.entries))]
        checksums = random.integers(0, 2**63, len(rows)).tolist()
        yield shard, shard_writer.Record(sums=sums, sha256="0" * 64, size=1, rows=rows, checksums=checksums)
account = getattr(stage, "Account", None) or stage._Packed
packed = account()
manifest.write_manifest(destination, "x", catalogue, packed.counted(records()), max_shorter_side=None)
note("index and manifest written")
packed.log("x", catalogue, read_manifest(destination))
note("duplicates looked for")
print(json.dumps(found))
"""
HERE = Path(__file__).resolve().parent.parent


def write_archive(path: Path, samples: int) -> None:
    """Write a tar file of so many files, a thousand classes."""
    from resnet_pipeline.staging.shard_writer import _header

    with path.open("wb") as file:
        for number in range(samples):
            name = f"train/n{number * 1_000 // samples:08d}/n{number * 1_000 // samples:08d}_{number}.JPEG"
            file.write(_header(name, 1) + b"x".ljust(512, b"\0"))
        file.write(bytes(1024))


def measured(archive: Path, checkout: Path, folder: Path) -> dict[str, tuple[float, float]]:
    """Return the peak of memory in bytes, and the CPU seconds, after each part."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(archive), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, cwd=checkout)
    found: dict[str, tuple[float, float]] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs=2, default=[100_000, 400_000])
    parser.add_argument("--against", type=Path)
    arguments = parser.parse_args()
    few, many = arguments.samples
    checkouts = {"ours": HERE} | ({"earlier": arguments.against.resolve()} if arguments.against else {})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for samples in arguments.samples:
            write_archive(folder / f"{samples}.tar", samples)
        for name, checkout in checkouts.items():
            found = [measured(folder / f"{n}.tar", checkout, folder / f"{name}{n}") for n in arguments.samples]
            print(f"{name}: a sample more, of {few:,} to {many:,}; memory is the peak until then")
            before = 0.0
            for part in found[0]:
                memory, seconds = ((found[1][part][i] - found[0][part][i]) / (many - few) for i in range(2))
                print(f"  {part:32}{memory:8.0f} bytes{1e6 * (seconds - before):9.1f} microseconds of processor time")
                before = seconds
            for file in ("index.parquet", "manifest.json"):
                print(f"  {file:32}{(folder / f'{name}{many}' / file).stat().st_size / many:8.1f} bytes of it")
        if arguments.against:
            for samples in arguments.samples:
                for file in ("index.parquet", "manifest.json", "checksums.parquet"):
                    ours, earlier = ((folder / f"{name}{samples}" / file).read_bytes() for name in checkouts)
                    print(f"{file} of {samples:,}: {'the same bytes' if ours == earlier else 'OTHER BYTES'}")


if __name__ == "__main__":
    main()
