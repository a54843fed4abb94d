"""Packing shards out of a nested tar archive, against ``tar -x`` of the same archive.

Run: python benchmarks/staging.py IMAGENET-SAMPLE.tar [--megabytes 1000] [--rounds 3] [--workers N]
(a tar of JPEGs; RESNET_PIPELINE_IMAGENET_SAMPLE if none is named). The images become an archive of ILSVRC's form, a
tar of a tar for each class, each image repeated until the archive is large enough. In turns, each into a new folder:
``tar -x`` of the outer archive alone; of the outer and then every inner one, which is what brings the images to disk;
our packing without the audit, and with it. Both ``tar -x`` and ours end when their data are on the disk (``sync``).
The table has the median MB/s of the archive's bytes, the CPU seconds, and the ratio to both forms of ``tar -x``.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePath

from resnet_pipeline.sources.catalogue import Entry
from resnet_pipeline.sources.file_views import Window
from resnet_pipeline.sources.ilsvrc import TRAIN
from resnet_pipeline.sources.tar_files import list_tar, walk_tar
from resnet_pipeline.staging.shard_plan import plan_shards
from resnet_pipeline.staging.shard_pool import Processes
from resnet_pipeline.staging.shard_writer import Task
from resnet_pipeline.storage.local import LocalStorage


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", nargs="?", default=os.environ.get("RESNET_PIPELINE_IMAGENET_SAMPLE"))
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the nested archive")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    arguments = parser.parse_args()
    if not arguments.archive:
        parser.error("name a tar of images, or set RESNET_PIPELINE_IMAGENET_SAMPLE")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        source = folder / "source"
        images = write_nested(Path(arguments.archive), source, arguments.megabytes * 10**6)
        megabytes = (source / TRAIN).stat().st_size / 1e6
        print(f"{TRAIN}: {megabytes:,.0f} MB, {images:,} images; {arguments.workers} workers")
        ways: dict[str, Callable[[Path], None]] = {
            "tar -x, outer archive": lambda target: untar(source / TRAIN, target),
            "tar -x, both levels": lambda target: untar_both(source / TRAIN, target),
            "ours, no audit": lambda target: pack(source, target, arguments.workers, audited=False),
            "ours": lambda target: pack(source, target, arguments.workers, audited=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                target = folder / "target"
                target.mkdir()
                os.sync()
                before, start = used(), time.perf_counter()
                way(target)
                os.sync()
                seconds[name].append(time.perf_counter() - start)
                cpu[name].append(used() - before)
                shutil.rmtree(target)
    rates = {name: megabytes / statistics.median(times) for name, times in seconds.items()}
    outer, both = list(rates.values())[:2]
    print(f"{'':<24}{'MB/s':>8}{'images/s':>10}{'CPU s':>8}{'of outer':>10}{'of both':>10}")
    for name, rate in rates.items():
        print(
            f"{name:<24}{rate:>8.0f}{rate / megabytes * images:>10,.0f}{statistics.median(cpu[name]):>8.2f}"
            f"{rate / outer:>10.2f}{rate / both:>10.2f}"
        )
    reached = "reached" if rates["ours, no audit"] >= both else "not reached"
    print(f"aim: without the audit at least tar -x's MB/s (both levels): {reached}")


def write_nested(sample: Path, folder: Path, size: int) -> int:
    """Write an archive of ILSVRC's form of about ``size`` bytes; return the number of its images."""
    classes: dict[str, list[bytes]] = {}
    with tarfile.open(sample) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isreg() else None
            if content and member.name.lower().endswith((".jpeg", ".jpg")):
                wnid = PurePath(member.name).name.split("_")[0]
                classes.setdefault(wnid, []).append(content.read())
    times = max(1, round(size / sum(len(data) for images in classes.values() for data in images)))
    folder.mkdir()
    with tarfile.open(folder / TRAIN, "w", format=tarfile.GNU_FORMAT) as outer:
        for wnid, images in sorted(classes.items()):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as inner:
                for number, data in enumerate(images * times):
                    add(inner, f"{wnid}_{number}.JPEG", data)
            add(outer, f"{wnid}.tar", buffer.getvalue())
    return times * sum(map(len, classes.values()))


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to an archive."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def untar(archive: Path, target: Path) -> None:
    """Unpack an archive with tar."""
    subprocess.run(["tar", "-xf", str(archive), "-C", str(target)], check=True)


def untar_both(archive: Path, target: Path) -> None:
    """Unpack the archive of archives as its users do: the outer one, then each inner one into a folder."""
    script = (
        'tar -xf "$1" -C "$2" && cd "$2" && for f in *.tar; do '
        'mkdir "${f%.tar}" && tar -xf "$f" -C "${f%.tar}" && rm "$f" || exit 1; done'
    )
    subprocess.run(["bash", "-c", script, "untar", str(archive), str(target)], check=True)


def pack(source: Path, target: Path, workers: int, *, audited: bool) -> None:
    """List the archive and make all shards, as staging does; index and manifest are left out."""
    entries = []
    with (source / TRAIN).open("rb") as file:
        for outer in walk_tar(file, TRAIN):
            window = Window(file, outer.offset_data, outer.size)
            members, _ = list_tar(window, TRAIN, TRAIN, outer.offset_data)
            entries += [Entry(member, "train", outer.name.removesuffix(".tar")) for member in members]
    pool = Processes(workers)
    task = Task(
        shard=plan_shards(entries)[0],
        labels=[],
        source=LocalStorage(source),
        destination=LocalStorage(target),
        side=None,
        allowed=0,
        audited=audited,
    )
    try:
        shards = plan_shards(entries, 64 * 2**20)  # smaller than staging's, as the archive is than ILSVRC's
        # of ImageNet's 1.28 million images 10,000 make the statistics
        marks = [[number % 128 == 0 for number in range(len(shard.entries))] for shard in shards]
        shards = [replace(shard, averaged=averaged) for shard, averaged in zip(shards, marks, strict=True)]
        futures = [pool.submit(replace(task, shard=shard, labels=[0] * len(shard.entries))) for shard in shards]
        assert all(future.result().finished for future in futures)
    finally:
        pool.close()


def used() -> float:
    """Return the CPU seconds of this process and its finished children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
