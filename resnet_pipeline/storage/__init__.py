"""Where files lie: a folder of this machine or a bucket, and copies of them on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import local_path
from resnet_pipeline.storage.base import Storage, Stored
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.storage.s3 import S3Storage

__all__ = ["LocalStorage", "S3Storage", "Storage", "Stored", "storage_at"]


def storage_at(url: str | Path) -> Storage:
    """Return the storage of an address: ``s3://bucket/prefix``, or a folder's path.

    >>> storage_at("s3://bucket/prefix").url
    's3://bucket/prefix'
    """
    if not str(url).startswith("s3://"):
        return LocalStorage(local_path(url))
    bucket, _, prefix = str(url).removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", bucket):
        raise UserError(f"{url} is no address of a bucket; write s3://BUCKET/PREFIX")
    return S3Storage(bucket, prefix.strip("/"))
