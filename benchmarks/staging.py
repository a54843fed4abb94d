"""Packing shards out of a nested tar archive, against ``tar -x`` of the same archive, and against an earlier state.

Run: python benchmarks/staging.py IMAGENET-SAMPLE.tar [--megabytes 1000] [--rounds 3] [--workers N] [--against CHECKOUT]
(a tar of JPEGs; RESNET_PIPELINE_IMAGENET_SAMPLE if none is named). Needs the extra ``bench``. The images become an
archive of ILSVRC's form, a tar of a tar for each class, each image repeated until the archive is large enough. In
turns, each into a new folder: ``tar -x`` of the outer archive alone; of the outer and then every inner one, which is
what brings the images to disk; our packing without the audit, and with it, and with it as another checkout of this
repository packs (``git worktree add CHECKOUT COMMIT``). All end when their data are on the disk (``sync``). The bound
of the audit is what libjpeg-turbo takes to decode the Huffman codes of all images, which lie in memory, and next to
nothing else: to an eighth of their rows and columns, without colours. The table has the median MB/s of the archive's
bytes and CPU seconds, and how many times as fast ours is as each, by the clock and by CPU time: the median of the
rounds' ratios and its 95 % interval. Where other programs share the cores the clock says little; CPU time is disturbed
least.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePath

import psutil
import simplejpeg
from ratios import ratio

from resnet_pipeline.parallel import cores
from resnet_pipeline.sources.entries import Entry
from resnet_pipeline.sources.file_views import Window
from resnet_pipeline.sources.ilsvrc import TRAIN
from resnet_pipeline.sources.tar_files import list_tar, walk_tar
from resnet_pipeline.staging.shard_plan import plan_shards
from resnet_pipeline.staging.shard_pool import Processes
from resnet_pipeline.staging.shard_writer import Task
from resnet_pipeline.storage.local import LocalStorage

HERE = Path(__file__).parent.parent
OURS, OURS_PLAIN, EARLIER, BOTH = "ours", "ours, no audit", "the other checkout", "tar -x, both levels"
BOUND = "bound: Huffman decoding"

Cost = tuple[float, float]
"""Seconds by the clock, and of the CPU."""


def main() -> None:
    """Print a row for each way."""
    if sys.argv[1:2] == ["--pack"]:
        source, target, workers, audited = sys.argv[2:]
        options = {"workers": int(workers), "audited": audited == "True"}
        pack(listed(Path(source))[:1], Path(source), Path(target, "first"), **options)  # the workers' imports
        cost = timed(lambda: pack(listed(Path(source)), Path(source), Path(target), **options))
        return print(json.dumps(cost))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", default=os.environ.get("RESNET_PIPELINE_IMAGENET_SAMPLE"))
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the nested archive")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's temporary folder")
    parser.add_argument("--against", type=Path, help="another checkout of this repository, to compare with")
    arguments = parser.parse_args()
    if not arguments.archive:
        parser.error("name a tar of images, or set RESNET_PIPELINE_IMAGENET_SAMPLE")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        source, workers = folder / "source", arguments.workers
        images = write_nested(Path(arguments.archive), source, arguments.megabytes * 10**6)
        megabytes = (source / TRAIN).stat().st_size / 1e6
        print(f"{TRAIN}: {megabytes:,.0f} MB, {images:,} images; {workers} workers; {arguments.rounds} rounds in turns")
        ways: dict[str, Callable[[Path], Cost]] = {
            OURS: lambda target: packed_by(HERE, source, target, workers, audited=True),
            OURS_PLAIN: lambda target: packed_by(HERE, source, target, workers, audited=False),
            BOUND: lambda target: huffman(source, workers),
            "tar -x, outer archive": lambda target: timed(lambda: untar(source / TRAIN, target)),
            BOTH: lambda target: timed(lambda: untar_both(source / TRAIN, target)),
        }
        if arguments.against:
            ways[EARLIER] = lambda target: packed_by(arguments.against, source, target, workers, audited=True)
        costs: dict[str, list[Cost]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                made = folder / "made"
                made.mkdir()
                os.sync()
                costs[name].append(way(made))
                shutil.rmtree(made)
    show(costs, megabytes, images)


def show(costs: dict[str, list[Cost]], megabytes: float, images: int) -> None:
    """Print a row for each way, and whether the aims are reached."""
    walls, cpus = ({name: [c[i] for c in found] for name, found in costs.items()} for i in (0, 1))
    print(f"{'':<24}{'MB/s':>6}{'images/s':>10}{'CPU s':>8}{'MB/CPU s':>10}{'ours / it':>22}{'by CPU':>22}")
    for name in costs:
        seconds, cpu = statistics.median(walls[name]), statistics.median(cpus[name])
        by_clock, by_cpu = ratio(walls[name], walls[OURS]), ratio(cpus[name], cpus[OURS])
        print(
            f"{name:<24}{megabytes / seconds:>6.0f}{images / seconds:>10,.0f}{cpu:>8.2f}{megabytes / cpu:>10.0f}"
            f"{by_clock:>22}{by_cpu:>22}"
        )
    rates = {name: megabytes / statistics.median(seconds) for name, seconds in walls.items()}
    for what, value, aim in (
        ("MB/s with the audit", rates[OURS], 250),
        ("times tar -x of both levels, without the audit", rates[OURS_PLAIN] / rates[BOTH], 1),
    ):
        print(f"aim, {what}: at least {aim}; {value:.2f}, {'reached' if value >= aim else 'NOT reached'}")


def timed(work: Callable[[], object]) -> Cost:
    """Do some work, and bring what it wrote to the disk; return what that took."""
    before, start = used(), time.perf_counter()
    work()
    os.sync()
    return time.perf_counter() - start, used() - before


def packed_by(checkout: Path, source: Path, target: Path, workers: int, *, audited: bool) -> Cost:
    """Pack with a checkout's code, in a process of its own; return what that took, its imports not counted."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--pack",
        str(source),
        str(target),
        str(workers),
        str(audited),
    ]
    folder = checkout.resolve()
    run = subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)}, stdout=subprocess.PIPE, check=True
    )
    wall, cpu = json.loads(run.stdout)
    return wall, cpu


def huffman(source: Path, workers: int) -> Cost:
    """Decode the Huffman codes of all images in memory, in threads (outside of Python's lock)."""
    entries = listed(source)
    with (source / TRAIN).open("rb") as file:
        images = [os.pread(file.fileno(), entry.member.size, entry.member.offset) for entry in entries]

    def decode(part: list[bytes]) -> None:
        for data in part:
            simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=False)

    with ThreadPoolExecutor(workers) as pool:
        return timed(lambda: list(pool.map(decode, (images[i::workers] for i in range(workers)))))


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


def pack(entries: list[Entry], source: Path, target: Path, *, workers: int, audited: bool) -> None:
    """Make all shards, as staging does; index and manifest are left out."""
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


def listed(source: Path) -> list[Entry]:
    """Return the images of the nested archive."""
    entries = []
    with (source / TRAIN).open("rb") as file:
        for outer in walk_tar(file, TRAIN):
            window = Window(file, outer.offset_data, outer.size)
            members, _ = list_tar(window, TRAIN, TRAIN, outer.offset_data)
            entries += [Entry(member, "train", outer.name.removesuffix(".tar")) for member in members]
    return entries


def used() -> float:
    """Return the CPU seconds of this process and its children, finished ones and those of finished ones included."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    running = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(u.ru_utime + u.ru_stime for u in usage) + sum(sum(times[:4]) for times in running)


if __name__ == "__main__":
    main()
