"""A dataset to a bucket and back: this project's transfers against the AWS command line with its defaults.

Run: python benchmarks/s3.py [--megabytes 200] [--shards 4] [--rounds 5] [--endpoint http://…] [--against CHECKOUT]
(needs the extra `bench`: nanio, a small S3 server on this machine, awscli and obstore; with --endpoint another server,
a bucket that may be written to in --bucket, and credentials in the environment). Everything runs in turns, each as a
command of its own with its start-up; ours verify what arrives (MD5 against the ETag upwards, SHA-256 against the
manifest downwards). obstore, a client in Rust, brings and hashes the same ranges, but keeps no state to resume from;
CHECKOUT is another state of this repository (``git worktree add CHECKOUT COMMIT``). The table gives the median seconds,
MB/s, CPU seconds, and the ratio of times and of CPU seconds to ours, with its 95 % interval.
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

from ratios import ratio

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
OBSTORE = """
import hashlib, json, os, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import obstore
bucket, prefix = sys.argv[1].removeprefix("s3://").split("/")
plain = {"client_options": {"allow_http": True}, "virtual_hosted_style_request": False}
store = obstore.store.S3Store(bucket, prefix=prefix, endpoint=os.environ["AWS_ENDPOINT_URL"], **plain)
folder, block = Path(sys.argv[2]), 8 * 2**20
folder.mkdir()
def bring(shard):
    name, size, sha256 = shard
    digest, file = hashlib.sha256(), os.open(folder / name, os.O_RDWR | os.O_CREAT)
    def get(start):
        content = obstore.get_range(store, name, start=start, end=min(size, start + block))
        os.pwrite(file, content, start)
        return content
    with ThreadPoolExecutor(8) as pool:
        for content in pool.map(get, range(0, size, block)):
            digest.update(content)
    os.fsync(file)
    assert digest.hexdigest() == sha256
with ThreadPoolExecutor(2) as pool:
    list(pool.map(bring, json.loads(sys.argv[3])))
"""
EARLIER = "download: ours, earlier"
HERE = Path(__file__).resolve().parent.parent


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


def timed(command: list[str], checkout: Path) -> tuple[float, float]:
    """Run a command with a checkout's code; return its wall and CPU seconds."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=checkout, env=environment)
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
        EARLIER: lambda to: [sys.executable, "-c", DOWNLOAD, here, str(to), json.dumps(shards)],
        "download: obstore": lambda to: [sys.executable, "-c", OBSTORE, here, str(to), json.dumps(shards)],
        "download: aws s3 cp": lambda to: [aws, "s3", "cp", "--recursive", here, str(to)],
        "download: aws s3 sync": lambda to: [aws, "s3", "sync", here, str(to)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--endpoint")
    parser.add_argument("--against", type=Path, help="another checkout of this repository, to compare downloads with")
    parser.add_argument("--only", choices=["upload", "download"])
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
    if arguments.only == "download":
        subprocess.run(runs["upload: ours"](folder), check=True)
    for name in list(runs):
        if (name == EARLIER and not arguments.against) or (arguments.only and not name.startswith(arguments.only)):
            del runs[name]
    walls: dict[str, list[float]] = {name: [] for name in runs}
    cpus: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(arguments.rounds):
        for name, command in runs.items():
            to = folder / f"{number}-{len(walls[name])}-{name.replace(' ', '').replace(':', '-')}"
            wall, cpu = timed(command(to), arguments.against.resolve() if name == EARLIER else HERE)
            shutil.rmtree(to, ignore_errors=True)
            walls[name].append(wall)
            cpus[name].append(cpu)
    total = sum(size for _, size, _ in shards) / 1e6
    print(f"{total:,.0f} MB in {len(shards)} files, medians of {arguments.rounds}")
    print(f"{'':24}{'seconds':>9}{'MB/s':>8}{'CPU s':>8}{'time / ours':>22}{'CPU / ours':>22}")
    for name in runs:
        ours, seconds = f"{name.split(':')[0]}: ours", statistics.median(walls[name])
        by_clock, by_cpu = ratio(walls[name], walls[ours]), ratio(cpus[name], cpus[ours])
        cpu = statistics.median(cpus[name])
        print(f"{name:24}{seconds:9.2f}{total / seconds:8.0f}{cpu:8.2f}{by_clock:>22}{by_cpu:>22}")


if __name__ == "__main__":
    main()
