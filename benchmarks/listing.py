"""Listing a bucket: this project's storage against boto3 as it comes, in processor time of the lister.

Run: python benchmarks/listing.py [--objects 20000] [--rounds 5]

The bucket is a process of its own that answers from memory, a thousand objects a page as S3 does, so all that is
measured is what it costs to ask and to read the answers. Objects have the names of ImageNet's training files. In turns;
the table gives median CPU seconds, objects a CPU second, and the ratio to ours with its interval.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ratios import ratio

from resnet_pipeline.storage import storage_at

PAGE = 1000
SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1])))
from listing import page
class Bucket(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = page(self.path, int(sys.argv[2]))
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
server = ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
print(server.server_port, flush=True)
server.serve_forever()
"""


def page(path: str, objects: int) -> bytes:
    """Return the page of a listing that a request's path asks for."""
    first = int(parse_qs(urlsplit(path).query).get("continuation-token", ["0"])[0])
    last = min(first + PAGE, objects)
    entries = "".join(
        f"<Contents><Key>train/n{number // 1300:08d}/n{number // 1300:08d}_{number}.JPEG</Key>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{number:032x}&quot;</ETag><Size>{number}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for number in range(first, last)
    )
    more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < objects else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>bucket</Name><KeyCount>{last - first}</KeyCount><IsTruncated>{str(bool(more)).lower()}</IsTruncated>"
        f"{more}{entries}</ListBucketResult>"
    ).encode()


def by_ours() -> int:
    return len(storage_at("s3://bucket").files())


def by_boto3() -> int:
    import boto3

    pages = boto3.session.Session().client("s3").get_paginator("list_objects_v2").paginate(Bucket="bucket")
    return sum(len(page["Contents"]) for page in pages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    here = str(Path(__file__).resolve().parent)
    command = [sys.executable, "-c", SERVER, here, str(arguments.objects)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        keys = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark-only", "AWS_DEFAULT_REGION": "x"}
        os.environ.update({**keys, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{server.stdout.readline().strip()}"})
        ways: dict[str, Callable[[], int]] = {"ours": by_ours, "boto3, as it comes": by_boto3}
        found: dict[str, list[float]] = {name: [] for name in ways}
        for round_ in range(arguments.rounds + 1):
            for name, list_all in ways.items():
                start = time.process_time()
                assert list_all() == arguments.objects
                if round_:  # the first one imports
                    found[name].append(time.process_time() - start)
        server.terminate()
    print(f"{arguments.objects:,} objects, {arguments.rounds} rounds in turns")
    print(f"{'':24}{'CPU s':>8}{'objects / CPU s':>18}  it / ours")
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(f"{name:24}{median:8.2f}{arguments.objects / median:18,.0f}  {ratio(seconds, found['ours'])}")


if __name__ == "__main__":
    main()
