"""Training batches of ImageNet images: this project's loader against what one would use instead.

Run: python benchmarks/loader.py IMAGENET-SAMPLE.tar [--rounds 3]
(a tar of JPEGs; RESNET_PIPELINE_IMAGENET_SAMPLE where none is named). Everything runs in turns, each on the same images
with two threads or two worker processes; the table gives the median images/s and its ratio to ours.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePath

import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import train_batches
from resnet_pipeline.data.shards import stage
from resnet_pipeline.recipes import get_recipe

THREADS = 2
BATCH = 32


class Files(torch.utils.data.Dataset):
    """Image files with the paper's augmentation in Pillow, as torchvision's users write it."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.crop = v2.Compose([v2.RandomCrop(224), v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.files[index]) as opened:
            image = opened.convert("RGB")
        shorter = int(torch.randint(256, 481, ()))
        return v2.functional.pil_to_tensor(self.crop(v2.functional.resize(image, [shorter])))


class ResizedFiles(Files):
    """torchvision's fastest form: decode_image, and RandomResizedCrop on tensors."""

    def __init__(self, files: list[Path]) -> None:
        super().__init__(files)
        self.crop = v2.Compose([v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()])

    def __getitem__(self, index: int) -> torch.Tensor:
        from torchvision.io import ImageReadMode, decode_image

        return self.crop(decode_image(str(self.files[index]), mode=ImageReadMode.RGB))


def torchvision_loader(files: list[Path], kind: type[Files]) -> int:
    loader = torch.utils.data.DataLoader(kind(files), BATCH, shuffle=True, num_workers=THREADS)
    return sum(len(batch) for batch in loader)


def documented_dali(files: list[Path], *, decode_only: bool = False) -> int:
    """Run the pipeline of DALI's documentation: file reader, decode, resize, crop, flip."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    pipeline = Pipeline(batch_size=BATCH, num_threads=THREADS, device_id=None, prefetch_queue_depth=2)
    with pipeline:
        encoded, _ = fn.readers.file(files=[str(f) for f in files], random_shuffle=True, name="reader")
        images = fn.decoders.image(encoded, output_type=types.RGB)
        if not decode_only:
            shorter = fn.random.uniform(range=(256.0, 480.0))
            images = fn.resize(images, resize_shorter=shorter, antialias=True)
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
    done = 0
    while done < len(files):
        (images,) = pipeline.run()
        done += len(images)
    return done


def ours(dataset: Dataset) -> int:
    recipe = get_recipe("imagenet/resnet50")
    steps = len(dataset.splits["train"]) // BATCH
    options = {"seed": 0, "batch": BATCH, "micro_batch": BATCH, "steps": steps, "threads": THREADS}
    with train_batches(dataset, augment=recipe.augment, **options) as batches:
        return sum(len(batch.labels) for batch in batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", default=os.environ.get("RESNET_PIPELINE_IMAGENET_SAMPLE"))
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if not arguments.archive:
        parser.error("name a tar of JPEGs, or set RESNET_PIPELINE_IMAGENET_SAMPLE")
    torch.set_num_threads(1)  # the loaders' own processes and threads share the two cores
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "images"
        with tarfile.open(arguments.archive) as tar:
            for member in tar:
                if member.isfile():
                    name = PurePath(member.name).name
                    path = folder / "train" / name.split("_")[0] / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(tar.extractfile(member).read())
        files = sorted(folder.glob("train/*/*"))
        dataset = stage(folder, Path(temporary) / "dataset", name="sample")
        contestants: dict[str, Callable[[], int]] = {
            "ours (paper's augmentation)": lambda: ours(dataset),
            "torchvision DataLoader, Pillow, the same augmentation": lambda: torchvision_loader(files, Files),
            "torchvision DataLoader, decode_image, RandomResizedCrop": lambda: torchvision_loader(files, ResizedFiles),
            "DALI as documented, the same augmentation": lambda: documented_dali(files),
            "floor: DALI decodes all pixels, nothing else": lambda: documented_dali(files, decode_only=True),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for number in range(arguments.rounds + 1):
            for name, run in contestants.items():
                start = time.perf_counter()
                count = run()
                if number:  # the first round warms the page cache up
                    rates[name].append(count / (time.perf_counter() - start))
    first = statistics.median(rates["ours (paper's augmentation)"])
    print(f"{len(files)} images, {THREADS} threads, {arguments.rounds} rounds in turns")
    for name, values in rates.items():
        median = statistics.median(values)
        print(
            f"{median:8.0f} images/s  ours / it = {first / median:4.2f}  {min(values):.0f}..{max(values):.0f}  {name}"
        )


if __name__ == "__main__":
    main()
