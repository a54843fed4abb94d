"""The first epoch of training images from an S3 server, nothing of it on this machine yet, against the local disk.

Run: python benchmarks/first_epoch.py [IMAGENET-SAMPLE.tar] [--rounds 6] [--images 992] [--threads 2]
(a tar of JPEGs; RESNET_PIPELINE_IMAGENET_SAMPLE if none is named). Needs the extra ``bench``; mosaicml-streaming is
compared with where it is installed (LitData 0.2.76 is not: its client refused a server's address with http://). The
images are packed in shards of 8 MiB by each library's own writer and copied to a server on this machine (nanio), which
shares its cores. In turns, each with a new, empty cache: ours from the local disk and from the server, the other from
the server with a DataLoader of as many processes. All decode with the paper's augmentation. The table has images/s, and
which part of ours from the disk each reaches, with the 95 % interval. Opening the dataset is counted, the
imports are not.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from loader import BATCH, SHARD_BYTES, PaperCrop, ours, unpack
from ratios import ratio
from s3 import KEYS, server
from torchvision.io import ImageReadMode, decode_image

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.staging.stage import Options, stage
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.cache import CacheFolder

BUCKET = "benchmark"
DISK, AIM = "ours, local disk", 0.95


def together(samples: list[dict[str, Any]]) -> torch.Tensor:
    """Return a batch of crops, decoded and augmented in a worker's process."""
    crop = PaperCrop()
    images = (torch.frombuffer(bytearray(sample["image"]), dtype=torch.uint8) for sample in samples)
    return torch.stack([crop(decode_image(image, mode=ImageReadMode.RGB)) for image in images])


def write_mosaic(files: list[Path], folder: Path) -> None:
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"image": "bytes"}, size_limit=SHARD_BYTES) as writer:
        for path in files:
            writer.write({"image": path.read_bytes()})


def mosaic(cache: Path, threads: int) -> Iterator[int]:
    from streaming import StreamingDataset

    remote = {"remote": f"s3://{BUCKET}/mosaic", "local": str(cache), "shuffle": True, "batch_size": BATCH}
    dataset = StreamingDataset(**remote)
    yield from map(len, torch.utils.data.DataLoader(dataset, BATCH, num_workers=threads, collate_fn=together))


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", nargs="?", default=os.environ.get("RESNET_PIPELINE_IMAGENET_SAMPLE"))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--images", type=int, default=992)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if not arguments.archive:
        parser.error("name a tar of JPEGs, or set RESNET_PIPELINE_IMAGENET_SAMPLE")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unpack(Path(arguments.archive), folder / "images")
        files = sorted((folder / "images").glob("train/*/*"))
        local = folder / "served" / "ours"
        stage(folder / "images", local, name="sample", options=Options(shard_bytes=SHARD_BYTES))
        peers: dict[str, Callable[[Path, int], Iterator[int]]] = {}
        if importlib.util.find_spec("streaming"):
            write_mosaic(files, folder / "served" / "mosaic")
            peers["mosaicml-streaming"] = mosaic
        (folder / "server").mkdir()
        os.environ.update(KEYS)
        with server(folder / "server") as address:
            os.environ["AWS_ENDPOINT_URL"] = os.environ["S3_ENDPOINT_URL"] = address
            import boto3

            boto3.client("s3").create_bucket(Bucket=BUCKET)
            bucket = storage_at(f"s3://{BUCKET}")
            for path in sorted((folder / "served").rglob("*")):
                if path.is_file():
                    bucket.write(path.relative_to(folder / "served").as_posix(), path)

            def from_server(cache: Path) -> Iterator[int]:
                dataset = Dataset.open(storage_at(f"s3://{BUCKET}/ours"), CacheFolder(cache))
                yield from ours(dataset, arguments.images, threads=arguments.threads)

            ways: dict[str, Callable[[Path], Iterator[int]]] = {
                DISK: lambda cache: ours(Dataset.open(local), arguments.images, threads=arguments.threads),
                "ours, S3": from_server,
            } | {f"{name}, S3": lambda cache, peer=peer: peer(cache, arguments.threads) for name, peer in peers.items()}
            found: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(arguments.rounds + 1):
                for name, way in ways.items():
                    with tempfile.TemporaryDirectory(dir=folder) as cache:
                        start = time.perf_counter()
                        images = sum(way(Path(cache)))
                        if number:
                            found[name].append((time.perf_counter() - start) / images)
    print(f"{arguments.images} images, {arguments.threads} threads or processes, {arguments.rounds} rounds in turns")
    for name, seconds in found.items():
        print(f"{1 / statistics.median(seconds):8.0f} images/s  {ratio(found[DISK], seconds)} of the disk's   {name}")
    reached = statistics.median(found[DISK]) / statistics.median(found["ours, S3"])
    print(f"aim {AIM}: {'reached' if reached >= AIM else 'NOT reached'}, {reached:.2f}")


if __name__ == "__main__":
    main()
