"""Training batches of ImageNet images: this project's loader against what one would use instead.

Run: python benchmarks/loader.py [IMAGENET-SAMPLE.tar] [--rounds 5] [--images 3000]
(a tar of JPEGs; RESNET_PIPELINE_IMAGENET_SAMPLE if none is named). Needs the extra ``bench``. Everything runs in
turns in one process, on the same images, with two threads or two worker processes, starting them included. A row is
the median images/s, that per core, its ratio to ours, the slowest and fastest round, and the CPU time of an image (all
threads and processes, user and system), which other programs on the machine disturb least. The last lines say which
aims are reached. Three other measurements, instead of the comparison:

    --settings   ours alone with different numbers of threads and batches ahead
    --memory     ours alone over 20 epochs: memory of this process after each of them
    --windows    decoding alone: CPU time of an image for windows in different places, in one thread, and its share of
                 a whole decode by libjpeg-turbo with its 95 % interval. A decoder that stops after a window's last row
                 is fast with the first rows; what the last rows take beyond that is what lies above them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt
import simplejpeg
import timm.data
import torch
import webdataset
from PIL import Image
from ratios import ratio
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from resnet_pipeline.data.crops import plan_crops
from resnet_pipeline.data.dataset import Dataset, Split
from resnet_pipeline.data.loaders import train_batches
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.staging.stage import Options, stage

THREADS = 2
BATCH = 32
SHARD_BYTES = 8 * 2**20  # small enough for WebDataset's workers to have some each

OURS = "ours, the paper's augmentation"
PILLOW = "torchvision DataLoader, Pillow, the same augmentation"
TENSORS = "torchvision DataLoader, decode_image, the same augmentation"
RESIZED_CROP = "torchvision DataLoader, decode_image, RandomResizedCrop"
TIMM = "timm create_loader, RandomResizedCrop"
WEBDATASET = "WebDataset, Pillow, the same augmentation"
DALI = "DALI as documented, the same augmentation"
FLOOR = "floor: libjpeg-turbo decodes all pixels, nothing else"
AIMS = {PILLOW: 4.0, TENSORS: 1.4, RESIZED_CROP: 1.4, DALI: 2.2, FLOOR: 1.0}
"""How many times as fast as these we want to be."""


class PaperCrop(torch.nn.Module):
    """Shorter side uniform in 256..480, a random 224 crop of it, a flip: of Pillow images or of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.crop = v2.Compose([v2.RandomCrop(224), v2.RandomHorizontalFlip()])

    def forward(self, image: Image.Image | torch.Tensor) -> Image.Image | torch.Tensor:
        return self.crop(v2.functional.resize(image, [int(torch.randint(256, 481, ()))], antialias=True))


class Files(torch.utils.data.Dataset):
    """Image files, read and augmented as torchvision's users write it."""

    def __init__(self, files: list[Path], read: Callable[[Path], torch.Tensor]) -> None:
        self.files, self.read = files, read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.read(self.files[index])


def with_pillow() -> Callable[[Path], torch.Tensor]:
    crop = PaperCrop()

    def read(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            return v2.functional.pil_to_tensor(crop(image.convert("RGB")))

    return read


def with_tensors(crop: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], torch.Tensor]:
    return lambda path: crop(decode_image(str(path), mode=ImageReadMode.RGB))


def torchvision_loader(files: list[Path], read: Callable[[Path], torch.Tensor]) -> Iterator[int]:
    loader = torch.utils.data.DataLoader(Files(files, read), BATCH, shuffle=True, num_workers=THREADS)
    yield from map(len, loader)


def timm_loader(folder: Path, images: int) -> Iterator[int]:
    options = {"is_training": True, "color_jitter": None, "interpolation": "bilinear", "num_workers": THREADS}
    dataset = timm.data.ImageDataset(str(folder / "train"))
    loader = timm.data.create_loader(dataset, 224, BATCH, device=torch.device("cpu"), **options)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))  # its workers stay from epoch to epoch
    yield from itertools.islice((len(batch) for batch, _ in batches), images // BATCH)


def webdataset_loader(dataset: Dataset, images: int) -> Iterator[int]:
    urls = [str(path) for path in sorted((dataset.path / "shards").glob("train-*.tar"))]
    transform = v2.Compose([PaperCrop(), v2.PILToTensor()])
    samples = webdataset.WebDataset(urls, resampled=True, shardshuffle=False).shuffle(200)
    samples = samples.decode("pil", only=["jpg"]).to_tuple("jpg").map_tuple(transform).batched(BATCH)
    loader = webdataset.WebLoader(samples, batch_size=None, num_workers=THREADS)
    yield from itertools.islice((len(batch) for (batch,) in loader), images // BATCH)


def documented_dali(files: list[Path]) -> Iterator[int]:
    """Run the pipeline of DALI's documentation: file reader, decode, resize, crop, flip."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(batch_size=BATCH, num_threads=THREADS, device_id=None, prefetch_queue_depth=2)
    with pipeline:
        encoded, _ = fn.readers.file(files=[str(f) for f in files], random_shuffle=True, name="reader")
        images = fn.decoders.image(encoded, output_type=types.RGB)
        images = fn.resize(images, resize_shorter=fn.random.uniform(range=(256.0, 480.0)), antialias=True)
        images = fn.crop_mirror_normalize(
            images,
            crop=(224, 224),
            crop_pos_x=fn.random.uniform(range=(0.0, 1.0)),
            crop_pos_y=fn.random.uniform(range=(0.0, 1.0)),
            mirror=fn.random.coin_flip(),
            dtype=types.UINT8,
            output_layout="HWC",
        )
        pipeline.set_outputs(images)
    pipeline.build()
    for _ in range(len(files) // BATCH):
        (images,) = pipeline.run()
        yield len(images)


def libjpeg_turbo(dataset: Dataset, images: int) -> Iterator[int]:
    """Decode every image completely, in threads (the decoder runs outside Python's lock), and drop it."""
    split = dataset.splits["train"]

    def decode(numbers: range) -> int:
        for i in numbers:
            simplejpeg.decode_jpeg(split.encoded(i % len(split)), "RGB")
        return len(numbers)

    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(decode, (range(i, min(i + BATCH, images)) for i in range(0, images, BATCH)))


def ours(
    dataset: Dataset,
    images: int,
    *,
    threads: int = THREADS,
    prefetch: int | None = None,
    block_shards: int | None = None,
) -> Iterator[int]:
    augment = get_recipe("imagenet/resnet50").augment
    options = {"seed": 0, "batch": BATCH, "micro_batch": BATCH, "steps": images // BATCH, "threads": threads}
    options |= {"prefetch": prefetch, "block_shards": block_shards}
    with train_batches(dataset, augment=augment, **options) as batches:
        yield from (len(batch.labels) for batch in batches)


def windows(dataset: Dataset, rounds: int) -> None:
    """Print what DALI takes for windows of every image, beside whole images and Huffman codes alone."""
    split = dataset.splits["train"]
    index = np.arange(len(split) // BATCH * BATCH)
    height, width = split.height[index].astype(np.int64), split.width[index].astype(np.int64)
    nothing = np.zeros_like(height)
    corner = np.full_like(height, 16)
    plan = plan_crops(
        get_recipe("imagenet/resnet50").augment, seed=0, positions=index, index=index, width=split.width[index],
        height=split.height[index], color_basis=np.zeros((3, 3)),
    ).window  # fmt: skip
    places = {
        "the paper's windows": plan,
        "their rows, all columns": np.stack([plan[:, 0], nothing, plan[:, 2], width], 1),
        "all rows above and in them": np.stack([nothing, nothing, plan[:, 0] + plan[:, 2], width], 1),
        "the first 16 rows": np.stack([nothing, nothing, corner, width], 1),
        "the last 16 rows": np.stack([height - 16, nothing, corner, width], 1),
        "the first half of the rows": np.stack([nothing, nothing, height // 2, width], 1),
        "whole images": np.stack([nothing, nothing, height, width], 1),
    }

    def alone(decode: Callable[[bytes], object]) -> float:
        images = [split.encoded(int(i)).tobytes() for i in index]
        start = time.thread_time()
        for data in images:
            decode(data)
        return time.thread_time() - start

    ways: dict[str, Callable[[], float]] = {
        FLOOR: lambda: alone(lambda data: simplejpeg.decode_jpeg(data, "RGB")),
        "libjpeg-turbo: Huffman codes, nothing else": lambda: alone(
            lambda data: simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
        ),
    } | {f"DALI: {name}": lambda window=window: dali_windows(split, index, window) for name, window in places.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            seconds = way() / len(index)
            if number:
                found[name].append(seconds)
    share = float(np.mean((plan[:, 0] + plan[:, 2]) / height))
    print(f"{len(index)} images; the paper's windows end after {share:.2f} of the rows and have "
          f"{float(np.mean(plan[:, 2] * plan[:, 3] / (height * width))):.2f} of the pixels")  # fmt: skip
    for name, seconds in found.items():
        print(f"{1e3 * statistics.median(seconds):8.3f} ms  {ratio(seconds, found[FLOOR])} of the floor   {name}")


def dali_windows(split: Split, index: npt.NDArray[np.int64], window: npt.NDArray[np.int64]) -> float:
    """Return the CPU seconds in which DALI decodes windows (y, x, height, width) in one thread, start not counted."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    corners = window.astype(np.int32)

    def source() -> Iterator[list]:
        for batch in [index[:BATCH], *np.array_split(index, len(index) // BATCH)]:
            yield [split.encoded_each(batch), list(corners[batch, :2]), list(corners[batch, 2:])]

    pipeline = Pipeline(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        encoded, start, shape = fn.external_source(
            source=source(), num_outputs=3, dtype=[types.UINT8, types.INT32, types.INT32]
        )
        images = fn.decoders.image_slice(
            encoded, start=start, shape=shape, axes=[0, 1], output_type=types.RGB, adjust_orientation=False
        )
        pipeline.set_outputs(images)
    pipeline.build()
    pipeline.run()  # with it DALI starts, and the first batch is decoded ahead
    before = time.process_time()
    for _ in range(len(index) // BATCH):
        pipeline.run()
    return time.process_time() - before


def in_turns(contestants: dict[str, Callable[[], Iterator[int]]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return (images/s, CPU seconds per image) of each round of each contestant; a round before them warms up."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            start, cpu = time.perf_counter(), sum(os.times()[:4])  # with children that have ended
            images = sum(run())
            seconds = time.perf_counter() - start
            if number:
                found[name].append((images / seconds, (sum(os.times()[:4]) - cpu) / images))
    return found


def show(found: dict[str, list[tuple[float, float]]], cores: int) -> None:
    """Print a row per contestant, compared with the first."""
    rates, costs = ({name: [r[i] for r in rounds] for name, rounds in found.items()} for i in (0, 1))
    first = next(iter(found))
    print(f"{'images/s':>9}{'per core':>10}{'CPU ms':>8}{'ours / it':>22}{'by CPU':>22}   slowest..fastest")
    for name, own in rates.items():
        rate = statistics.median(own)
        print(
            f"{rate:9.0f}{rate / cores:10.0f}{1e3 * statistics.median(costs[name]):8.3f}"
            f"{ratio(rates[first], own):>22}{ratio(costs[name], costs[first]):>22}   "
            f"{min(own):.0f}..{max(own):.0f}   {name}"
        )
    for name in [name for name in AIMS if name in found]:
        times = statistics.median(rates[first]) / statistics.median(rates[name])
        print(f"aim {AIMS[name]:.2f}: {'reached' if times >= AIMS[name] else 'NOT reached'}, {times:.2f} times  {name}")


def memory(dataset: Dataset, epochs: int = 20) -> None:
    """Print this process's memory after each epoch: what it allocated, and with the shards' mapped pages."""
    count = len(dataset.splits["train"])
    after: list[int] = []
    done = 0
    for images in ours(dataset, epochs * count):
        done += images
        if done * (epochs + 0.01) / (epochs * count) >= len(after) + 1:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            after.append(int(status["RssAnon"].split()[0]) // 1024)
            print(
                f"epoch {len(after):2}: {after[-1]:6} MiB allocated, {int(status['VmRSS'].split()[0]) // 1024} in all"
            )
    print(f"growth from epoch {epochs // 4} to the last: {after[-1] - after[epochs // 4 - 1]} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", default=os.environ.get("RESNET_PIPELINE_IMAGENET_SAMPLE"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=3000, help="images per round and contestant")
    parser.add_argument("--settings", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--windows", action="store_true")
    parser.add_argument("--only", nargs="+", default=[""], help="those whose names have one of these words: ours floor")
    arguments = parser.parse_args()
    if not arguments.archive:
        parser.error("name a tar of JPEGs, or set RESNET_PIPELINE_IMAGENET_SAMPLE")
    torch.set_num_threads(1)  # the loaders' own processes and threads share the two cores
    images = arguments.images
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        unpack(Path(arguments.archive), folder)
        dataset = stage(folder, Path(temporary) / "dataset", name="sample", options=Options(shard_bytes=SHARD_BYTES))
        if arguments.memory:
            return memory(dataset)
        if arguments.windows:
            return windows(dataset, arguments.rounds)
        files = sorted(folder.glob("train/*/*"))
        files = (files * (images // len(files) + 1))[:images]
        contestants: dict[str, Callable[[], Iterator[int]]] = {
            OURS: lambda: ours(dataset, images),
            PILLOW: lambda: torchvision_loader(files, with_pillow()),
            TENSORS: lambda: torchvision_loader(files, with_tensors(PaperCrop())),
            RESIZED_CROP: lambda: torchvision_loader(
                files, with_tensors(v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()]))
            ),
            TIMM: lambda: timm_loader(folder, images),
            WEBDATASET: lambda: webdataset_loader(dataset, images),
            DALI: lambda: documented_dali(files),
            FLOOR: lambda: libjpeg_turbo(dataset, images),
        }
        if arguments.settings:
            contestants = {
                f"{threads} threads, {prefetch} ahead": lambda t=threads, p=prefetch: ours(
                    dataset, images, threads=t, prefetch=p
                )
                for threads, prefetch in [(2, 2), (1, 2), (3, 2), (4, 2), (2, 1), (2, 3), (2, 4), (2, 8)]
            }
        contestants = {name: run for name, run in contestants.items() if any(part in name for part in arguments.only)}
        print(f"{images} images, {THREADS} threads or processes, {arguments.rounds} rounds in turns")
        show(in_turns(contestants, arguments.rounds), THREADS)


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of a tar, named WNID_words.JPEG, as an image folder with a class per WordNet id."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile():
                name = PurePath(member.name).name
                path = folder / "train" / name.split("_")[0] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(tar.extractfile(member).read())


if __name__ == "__main__":
    main()
