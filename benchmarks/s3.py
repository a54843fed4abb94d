"""A dataset to a bucket and back: this project's transfers against the AWS command line with its defaults.

Run: python benchmarks/s3.py [--megabytes 200] [--shards 4] [--rounds 5] [--endpoint http://…]
(needs the extra `bench`: nanio, a small S3 server on this machine, and awscli; with --endpoint another server, a bucket
that may be written to in --bucket, and credentials in the environment). Everything runs in turns, each as a command of
its own with its start-up; ours verify what arrives (MD5 against the ETag upwards, SHA-256 against the manifest
downwards). The table gives the median seconds, MB/s, CPU seconds and the ratio of times to ours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark-only", "AWS_DEFAULT_REGION": "us-east-1"}

UPLOAD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from resnet_pipeline.storage import storage_at
folder, storage = Path(sys.argv[1]), storage_at(sys.argv[2])
with ThreadPoolExecutor(2) as pool:  # as two workers of staging do
    list(pool.map(lambda path: storage.write(path.name, path), sorted(folder.iterdir())))
"""
DOWNLOAD = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.cache import Cache, CacheFolder, Wanted
storage, cache = storage_at(sys.argv[1]), Cache(CacheFolder(Path(sys.argv[2])))
with ThreadPoolExecutor(2) as pool:  # as the thread that brings shards ahead does
    list(pool.map(lambda shard: cache.hold(storage, Wanted(*shard)), json.loads(sys.argv[3])))
"""


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run nanio on a free port and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = {"NANIO_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"], "NANIO_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"]}
    command = [sys.executable, "-m", "nanio", "serve", "--data-dir", str(folder), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--log-level", "error", "--no-access-log"], env={**os.environ, **keys}
    )
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def timed(command: list[str]) -> tuple[float, float]:
    """Run a command; return its wall and CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def make_shards(folder: Path, megabytes: int, count: int) -> list[tuple[str, int, str]]:
    """Write shards of random bytes, as JPEGs are to a transfer; return (name, size, SHA-256)."""
    folder.mkdir()
    found = []
    for i in range(count):
        content = os.urandom(megabytes * 10**6 // count)
        (folder / f"train-{i:05d}.tar").write_bytes(content)
        found.append((f"train-{i:05d}.tar", len(content), hashlib.sha256(content).hexdigest()))
    return found


def commands(
    aws: str, source: Path, bucket: str, shards: list[tuple[str, int, str]]
) -> dict[str, Callable[[Path], list[str]]]:
    """Return what is timed: commands that take a new folder to download to."""
    here = f"s3://{bucket}/ours"
    return {
        "upload: ours": lambda to: [sys.executable, "-c", UPLOAD, str(source), here],
        "upload: aws s3 cp": lambda to: [aws, "s3", "cp", "--recursive", str(source), f"s3://{bucket}/cp{to.name}"],
        "upload: aws s3 sync": lambda to: [aws, "s3", "sync", str(source), f"s3://{bucket}/sync{to.name}"],
        "download: ours": lambda to: [sys.executable, "-c", DOWNLOAD, here, str(to), json.dumps(shards)],
        "download: aws s3 cp": lambda to: [aws, "s3", "cp", "--recursive", here, str(to)],
        "download: aws s3 sync": lambda to: [aws, "s3", "sync", here, str(to)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--endpoint")
    parser.add_argument("--bucket", default="benchmark")
    parser.add_argument(
        "--aws", default=shutil.which("aws", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-s3-") as temporary:
        folder = Path(temporary)
        (folder / "server").mkdir()
        if arguments.endpoint:
            os.environ["AWS_ENDPOINT_URL"] = arguments.endpoint
            measure(arguments, folder)
        else:
            os.environ.update(KEYS)
            with server(folder / "server") as address:
                os.environ["AWS_ENDPOINT_URL"] = address
                subprocess.run([arguments.aws, "s3", "mb", f"s3://{arguments.bucket}"], check=True)
                measure(arguments, folder)


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    shards = make_shards(folder / "source", arguments.megabytes, arguments.shards)
    runs = commands(arguments.aws, folder / "source", arguments.bucket, shards)
    walls: dict[str, list[float]] = {name: [] for name in runs}
    cpus: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(arguments.rounds):
        for name, command in runs.items():
            to = folder / f"{number}-{len(walls[name])}-{name.replace(' ', '').replace(':', '-')}"
            wall, cpu = timed(command(to))
            shutil.rmtree(to, ignore_errors=True)
            walls[name].append(wall)
            cpus[name].append(cpu)
    total = sum(size for _, size, _ in shards) / 1e6
    print(f"{total:,.0f} MB in {len(shards)} files, medians of {arguments.rounds}")
    print(f"{'':24}{'seconds':>9}{'MB/s':>8}{'CPU s':>8}{'time / ours':>13}")
    for name in runs:
        seconds, ours = statistics.median(walls[name]), statistics.median(walls[f"{name.split(':')[0]}: ours"])
        cpu = statistics.median(cpus[name])
        print(f"{name:24}{seconds:9.2f}{total / seconds:8.0f}{cpu:8.2f}{seconds / ours:13.2f}")


if __name__ == "__main__":
    main()
