"""What the samples' checksums cost the loader.

Run: python benchmarks/checksums.py [--rounds 31] [--images 512]
(RESNET_PIPELINE_IMAGENET_SAMPLE: a tar of JPEGs named WNID_words.JPEG; RESNET_PIPELINE_CIFAR10: CIFAR-10's archive).
The same shards, threads and batches, with and without checksums in turns. Each line has the median of the rounds and
its 95 % interval. The first of a dataset is of whole training batches: on a machine that others use too its interval is
wider than what is looked for. The second is of the step that checks alone, handing on the encoded samples, as a share
of the loader's CPU time of an image; that share is to be below 2 %, its whole interval. It counts reading the bytes
into the processor's cache, which the decoder then need not do, so it is rather too high. The last lines are of the
checksum alone, beside the standard library's CRC-32.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt
import torch
from ratios import interval_of_median

from resnet_pipeline.data.checksums import checksum
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import train_batches
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.staging.stage import stage

THREADS, BATCH, MOST = 2, 32, 2.0


def seconds_per_image(dataset: Dataset, recipe: str, images: int) -> float:
    """Return the CPU seconds that an image takes, of all threads."""
    options = {"seed": 0, "batch": BATCH, "micro_batch": BATCH, "steps": images // BATCH, "threads": THREADS}
    start = time.process_time()
    with train_batches(dataset, augment=get_recipe(recipe).augment, **options) as batches:
        count = sum(len(batch.labels) for batch in batches)
    return (time.process_time() - start) / count


def compare(dataset: Dataset, recipe: str, *, images: int, rounds: int) -> float:
    """Print what checksums add to whole batches, and to their part; return the upper end of that share, in percent."""
    plain = Dataset.open(dataset.path)
    for split in plain.splits.values():
        split.checksums = None
    found: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for checked in (False, True) if number % 2 else (True, False):
            seconds = seconds_per_image(dataset if checked else plain, recipe, images)
            if number:  # the first warms up
                found[checked].append(seconds)
    ratios = [100 * (b / a - 1) for a, b in zip(found[False], found[True], strict=True)]
    low, high = interval_of_median(ratios)
    without, checked_ = (1e3 * statistics.median(found[key]) for key in (False, True))
    print(
        f"{recipe:20} without {without:.3f} ms, with {checked_:.3f} ms of CPU an image: "
        f"{statistics.median(ratios):+.2f} % ({low:+.2f} to {high:+.2f})",
        flush=True,
    )
    return share(dataset, plain, 1e-3 * without, images=images, rounds=rounds)


def share(dataset: Dataset, plain: Dataset, loader: float, *, images: int, rounds: int) -> float:
    """Print how long the check of a sample takes, and its share of ``loader`` seconds; return its upper end."""
    rng = np.random.default_rng(0)
    found: list[float] = []
    for _ in range(rounds):
        indices = rng.permutation(len(dataset.splits["train"]))[:images]
        without, with_ = (handing_on(one, indices) for one in (plain, dataset))
        found.append(with_ - without)
    middle, (low, high) = statistics.median(found), interval_of_median(found)
    percent = [100 * seconds / loader for seconds in (middle, low, high)]
    print(
        f"{'':20} the check alone {1e6 * middle:.2f} µs ({1e6 * low:.2f} to {1e6 * high:.2f}): "
        f"{percent[0]:.2f} % ({percent[1]:.2f} to {percent[2]:.2f})",
        flush=True,
    )
    return percent[2]


def handing_on(dataset: Dataset, indices: npt.NDArray[np.int64]) -> float:
    """Return the CPU seconds in which a sample's encoded bytes are handed on, as the loader does it."""
    samples = dataset.splits["train"]
    start = time.thread_time()
    for batch in np.array_split(indices, max(1, len(indices) // BATCH)):
        samples.encoded_each(batch)
    return (time.thread_time() - start) / len(indices)


def alone(size: int) -> None:
    """Print how long the checksum of so many bytes takes."""
    data = np.frombuffer(os.urandom(size), np.uint8)
    hashes: dict[str, Callable[[], int]] = {"XXH3": lambda: checksum(data), "CRC-32": lambda: zlib.crc32(data)}
    times = {}
    for name, run in hashes.items():
        start = time.process_time()
        for _ in range(5_000):
            run()
        times[name] = (time.process_time() - start) / 5_000
    print(f"{size:7,} bytes:  " + ", ".join(f"{name} {1e6 * seconds:.2f} µs" for name, seconds in times.items()))


def unpack(archive: Path, folder: Path) -> Path:
    """Write the files of a tar as an image folder with a class for each WordNet id; return the folder."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile():
                name = PurePath(member.name).name
                path = folder / "train" / name.split("_")[0] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--images", type=int, default=512, help="per round; ten times as many of CIFAR-10's")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos, small = (os.environ.get(f"RESNET_PIPELINE_{name}") for name in ("IMAGENET_SAMPLE", "CIFAR10"))
    costs = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if photos:
            dataset = stage(unpack(Path(photos), folder / "images"), folder / "photos", name="photos")
            images = arguments.images
            costs.append(compare(dataset, "imagenet/resnet50", images=images, rounds=arguments.rounds))
        if small:
            dataset = stage(Path(small), folder / "cifar10", name="cifar10")
            images = 10 * arguments.images
            costs.append(compare(dataset, "cifar10/resnet20", images=images, rounds=arguments.rounds))
    for size in (110_000, 1_500):
        alone(size)
    if costs:
        print(f"aim below {MOST} %: {'reached' if max(costs) < MOST else 'NOT reached'}")


if __name__ == "__main__":
    main()
