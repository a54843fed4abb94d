#!/usr/bin/env python
"""``bucket.py backup|restore FOLDER``: all objects of the bucket S3_BUCKET at AWS_ENDPOINT_URL, as files in FOLDER.

A backup into the same folder brings what is new or was changed and forgets what is gone; ``index.json`` is written
last. A restore writes what the bucket lacks or has otherwise, and deletes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

INDEX = "index.json"


def main(arguments: list[str]) -> None:
    """Do what the arguments say; end with status 2 and a line if that can't be done."""
    if len(arguments) != 2 or arguments[0] not in ("backup", "restore"):
        sys.exit("usage: bucket.py backup|restore FOLDER")
    bucket, folder = os.environ["S3_BUCKET"], Path(arguments[1])
    client = boto3.client("s3")
    try:
        copied, kept = (backup if arguments[0] == "backup" else restore)(client, bucket, folder)
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        print(f"bucket {bucket}, {folder}: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"bucket {bucket}: {copied} objects copied, {kept} were there")


def backup(client: Any, bucket: str, folder: Path) -> tuple[int, int]:
    """Return how many objects were brought, and how many the folder had."""
    (folder / "objects").mkdir(parents=True, exist_ok=True)
    index = folder / INDEX
    before: dict[str, dict[str, Any]] = json.loads(index.read_text()) if index.exists() else {}
    now: dict[str, dict[str, Any]] = {}
    copied = 0
    for key, entry in listed(client, bucket).items():
        path = place(folder, key)
        if before.get(key, {}).get("etag") != entry["etag"] or not path.exists():
            part = path.with_suffix(".part")
            client.download_file(bucket, key, str(part))
            part.replace(path)
            copied += 1
        now[key] = {**entry, "sha256": digest(path)}
    part = index.with_suffix(".part")
    part.write_text(json.dumps(now, indent=1, sort_keys=True))
    part.replace(index)
    for path in {place(folder, key) for key in before} - {place(folder, key) for key in now}:
        path.unlink(missing_ok=True)
    return copied, len(now) - copied


def restore(client: Any, bucket: str, folder: Path) -> tuple[int, int]:
    """Return how many objects were written, and how many were there. ValueError, before the first, for a bad backup."""
    index: dict[str, dict[str, Any]] = json.loads((folder / INDEX).read_text())
    for key, entry in index.items():
        if digest(place(folder, key)) != entry["sha256"]:
            raise ValueError(f"the copy of {key} is damaged ({place(folder, key)})")
    there = listed(client, bucket)
    missing = [key for key, entry in index.items() if there.get(key, {}).get("etag") != entry["etag"]]
    for key in missing:
        client.upload_file(str(place(folder, key)), bucket, key)
    return len(missing), len(index) - len(missing)


def listed(client: Any, bucket: str) -> dict[str, dict[str, Any]]:
    """Return the bucket's objects by key."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {
        one["Key"]: {"etag": one["ETag"], "bytes": one["Size"]} for page in pages for one in page.get("Contents", [])
    }


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def place(folder: Path, key: str) -> Path:
    """Return an object's file: a key is no path, it may hold `..` or be the folder of another."""
    return folder / "objects" / hashlib.sha256(key.encode()).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
