"""The first epoch of training images from an S3 server, nothing of it on this machine yet, against the local disk.

Run: python benchmarks/first_epoch.py [IMAGENET-SAMPLE.tar] [--rounds 6] [--images 992] [--threads 2]
(a tar of JPEGs; RESNET_PIPELINE_IMAGENET_SAMPLE if none is named). Needs the extra ``bench``; mosaicml-streaming is
compared with where it is installed (LitData 0.2.76 is not: its client refused a server's address with http://). The
images are packed in shards of 8 MiB by each library's own writer and copied to a server on this machine (nanio), which
shares its cores. In turns, each with a new, empty cache: ours from the local disk and from the server, the other from
the server with a DataLoader of as many processes. All decode with the paper's augmentation. The table has images/s,
which part of ours from the disk each reaches, with the 95 % interval, and the CPU time of client and server. Opening
the dataset is counted, the imports are not.

The last two rows fetch alone: ours, and the least that any client does (a GET for each shard by the standard library,
SHA-256, a file). From them the bound: an epoch can't take fewer CPU seconds than decoding, the server and that.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import importlib.util
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import torch
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from loader import BATCH, SHARD_BYTES, PaperCrop, ours, unpack
from ratios import ratio
from s3 import KEYS, server
from torchvision.io import ImageReadMode, decode_image

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.manifest import SHARDS
from resnet_pipeline.data.order import Stretch
from resnet_pipeline.staging.stage import Options, stage
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.cache import CacheFolder

BUCKET = "benchmark"
DISK, OURS, BLOCKS = "ours, local disk", "ours, S3", "ours, S3, blocks of 4 shards"
FETCHED, LEAST = "ours, fetching alone", "the least, fetching alone"
AIM = 0.95


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


def fetch_plainly(client: Any, name: str, path: Path) -> None:
    """Fetch an object as any client must at least: signed, received, hashed, written."""
    request = AWSRequest("GET", f"{client.meta.endpoint_url}/{BUCKET}/{name}")
    S3SigV4Auth(Credentials(*list(KEYS.values())[:2]), "s3", client.meta.region_name).add_auth(request)
    place = urlsplit(request.url)
    connection = http.client.HTTPConnection(place.netloc)
    connection.request("GET", place.path, headers=dict(request.headers))
    answer, digest, buffer = connection.getresponse(), hashlib.sha256(), memoryview(bytearray(2**18))
    assert answer.status == 200, answer.read()
    with path.open("wb", 0) as file:
        while size := answer.readinto(buffer):
            digest.update(buffer[:size])
            file.write(buffer[:size])
    connection.close()


def cpu_seconds(processes: list[psutil.Process]) -> tuple[float, float]:
    """Return the CPU seconds so far of this process with its ended children, and of the server's."""
    own = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    times = [p.cpu_times() for process in processes for p in (process, *process.children(recursive=True))]
    return sum(r.ru_utime + r.ru_stime for r in own), sum(t.user + t.system for t in times)


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
        peers: dict[str, Callable[..., Iterator[int]]] = {}
        if importlib.util.find_spec("streaming"):
            write_mosaic(files, folder / "served" / "mosaic")
            peers["mosaicml-streaming"] = mosaic
        (folder / "server").mkdir()
        os.environ.update(KEYS)
        with server(folder / "server") as address:
            os.environ["AWS_ENDPOINT_URL"] = os.environ["S3_ENDPOINT_URL"] = address
            import boto3

            client = boto3.client("s3")
            client.create_bucket(Bucket=BUCKET)
            bucket = storage_at(f"s3://{BUCKET}")
            for path in sorted((folder / "served").rglob("*")):
                if path.is_file():
                    bucket.write(path.relative_to(folder / "served").as_posix(), path)

            processes = psutil.Process().children()  # the server
            remote = storage_at(f"s3://{BUCKET}/ours")

            def from_server(cache: Path, block_shards: int | None = None) -> Iterator[int]:
                dataset = Dataset.open(remote, CacheFolder(cache))
                yield from ours(dataset, arguments.images, threads=arguments.threads, block_shards=block_shards)

            def fetched(cache: Path) -> Iterator[int]:
                fetching = Dataset.open(remote, CacheFolder(cache)).splits["train"]
                every = Stretch(0, len(fetching), tuple(range(len(fetching.shards))))
                with fetching.files.following([every]):
                    for shard in every.shards:
                        fetching.files.mapped(shard)
                yield arguments.images

            def least(cache: Path) -> Iterator[int]:
                for path in sorted((local / SHARDS).iterdir()):
                    fetch_plainly(client, f"ours/{SHARDS}/{path.name}", cache / path.name)
                yield arguments.images

            ways: dict[str, Callable[[Path], Iterator[int]]] = {
                DISK: lambda cache: ours(Dataset.open(local), arguments.images, threads=arguments.threads),
                OURS: from_server,
                BLOCKS: partial(from_server, block_shards=4),
                **{f"{name}, S3": partial(peer, threads=arguments.threads) for name, peer in peers.items()},
                FETCHED: fetched,
                LEAST: least,
            }
            found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
            for number in range(arguments.rounds + 1):
                for name, way in ways.items():
                    with tempfile.TemporaryDirectory(dir=folder) as cache:
                        before, start = cpu_seconds(processes), time.perf_counter()
                        images = sum(way(Path(cache)))
                        wall, after = time.perf_counter() - start, cpu_seconds(processes)
                        if number:
                            found[name].append(
                                tuple(x / images for x in (wall, after[0] - before[0], after[1] - before[1]))
                            )
    report(found, arguments)


def report(found: dict[str, list[tuple[float, float, float]]], arguments: argparse.Namespace) -> None:
    """Print the table and the bound."""
    print(f"{arguments.images} images, {arguments.threads} threads or processes, {arguments.rounds} rounds in turns")
    print(f"{'images/s':>8}  {'of the disk':22}{'client, ms an image':>20}{'server':>8}  {'both CPU / disk':22}")
    disk, cpu = [wall for wall, _, _ in found[DISK]], [client for _, client, _ in found[DISK]]
    for name, rounds in found.items():
        walls, clients, servers = zip(*rounds, strict=True)
        both = [c + s for c, s in zip(clients, servers, strict=True)]
        print(
            f"{1 / statistics.median(walls):8.0f}  {ratio(disk, walls):22}{1e3 * statistics.median(clients):20.3f}"
            f"{1e3 * statistics.median(servers):8.3f}  {ratio(both, cpu):22}{name}"
        )
    least = [d + c + s for d, (_, c, s) in zip(cpu, found[LEAST], strict=True)]
    all_of_it = [client + server for _, client, server in found[OURS]]
    print(f"bound, as CPU time of the disk's: {ratio(cpu, least)}; ours {ratio(cpu, all_of_it)}")
    reached = statistics.median(disk) / statistics.median(wall for wall, _, _ in found[OURS])
    print(f"aim {AIM}: {'reached' if reached >= AIM else 'NOT reached'}, {reached:.2f}")


if __name__ == "__main__":
    main()
