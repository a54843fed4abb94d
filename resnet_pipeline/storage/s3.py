"""Buckets of any S3-compatible server as a Storage; a server that has answered before is waited for.

Address and credentials are found as boto3 finds them: AWS_ENDPOINT_URL_S3, AWS_PROFILE, AWS_ACCESS_KEY_ID and so on.

Checksums are compared by our own means, since servers were seen to store uploads whose CRC32 was wrong: the server's
ETag of each part must be the MD5 of what was sent; if a server's ETags are something else (encryption), the object
is read back and hashed.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from resnet_pipeline.errors import UserError
from resnet_pipeline.storage import s3_client
from resnet_pipeline.storage.base import Stored
from resnet_pipeline.storage.lease import held
from resnet_pipeline.storage.ranged_file import read_ahead
from resnet_pipeline.storage.s3_errors import (
    NO_BUCKET,
    explained,
    is_changed,
    is_missing,
    is_past_end,
    is_unknown,
    is_wordless,
)

_log = logging.getLogger(__name__)

PART = 16 * 2**20
"""Bytes of an upload's part; larger if a file would have more than S3's 10,000 parts."""

_MOST_PARTS = 10_000
_UPLOADS = 8  # parts of one file that are under way at once


T = TypeVar("T")
Part = dict[str, str | int]  # of an upload, as S3 wants it named: PartNumber and ETag


@dataclass(frozen=True)
class S3Storage:
    """The objects of a bucket below a prefix."""

    bucket: str
    prefix: str = ""

    @property
    def url(self) -> str:
        """The root as ``s3://bucket/prefix``."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def files(self, prefix: str = "") -> list[Stored]:
        """Return all objects whose names start with ``prefix``; markers of empty folders are left out."""

        def listed() -> list[Stored]:
            found = []
            listing = s3_client.client().get_paginator("list_objects_v2")
            for page in listing.paginate(Bucket=self.bucket, Prefix=self._key(prefix)):
                if "Name" not in page:
                    raise ConnectionResetError(s3_client.EARLY)
                found += [
                    Stored(entry["Key"][len(self._key("")) :], entry["Size"], entry["ETag"])
                    for entry in page.get("Contents", ())
                    if not entry["Key"].endswith("/")
                ]
            return found

        with explained(self._url(prefix)):
            return sorted(s3_client.patiently(listed), key=lambda stored: stored.name)

    def stat(self, name: str) -> Stored | None:
        """Return size and ETag of an object, None if there is none; UserError if the bucket is missing."""
        with explained(self._url(name)):
            try:
                head = s3_client.answer("head_object", "ContentLength", Bucket=self.bucket, Key=self._key(name))
            except Exception as error:
                if is_wordless(error):
                    self._get(name, "bytes=0-0", None)
                if not is_missing(error):
                    raise
                self._check_bucket()
                return None
        return Stored(name, head["ContentLength"], head["ETag"])

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return a range of an object; a connection that is cut is retried from where it was."""
        return b"".join(self.pieces(name, offset, length))

    def pieces(
        self, name: str, offset: int = 0, length: int | None = None, *, version: str | None = None
    ) -> list[bytes]:
        """Return a range of an object as it came; UserError if it has another ``version`` than is given."""
        if length is not None and length <= 0:
            return []
        stop = "" if length is None else offset + length - 1
        with explained(self._url(name)):
            try:
                answer = self._get(name, f"bytes={offset}-{stop}", version)
            except Exception as error:
                if is_past_end(error):
                    return []
                raise
            etag, size, found, got = answer["ETag"], answer["ContentLength"], list[bytes](), 0

            def receive() -> None:
                nonlocal answer, got
                taken, answer = answer, None  # the first answer, then one for the rest of each that was cut
                taken = taken or self._get(name, f"bytes={offset + got}-{offset + size - 1}", etag)
                while got < size and (piece := taken["Body"].read(min(s3_client.PIECE, size - got))):
                    found.append(piece)
                    got += len(piece)
                if got < size:
                    raise ConnectionResetError(s3_client.EARLY)

            s3_client.patiently(receive, lambda: got)
            return found

    def open(self, name: str) -> BufferedReader:
        """Open an object for reading: seekable, reading ahead; its content is that of the moment of opening."""
        stored = self.stat(name)
        if stored is None:
            raise UserError(f"{self._url(name)}: does not exist")
        version = stored.version
        return read_ahead(
            lambda offset, length: b"".join(self.pieces(name, offset, length, version=version)), stored.size
        )

    def write(self, name: str, content: bytes | Path) -> None:
        """Write an object and verify it; large files go up in parts, several at once."""
        with explained(self._url(name)):
            if isinstance(content, bytes):
                self._put(name, content)
                return
            try:
                file = content.open("rb")
            except OSError as error:
                raise UserError(f"{content} can't be sent to {self._url(name)}: {error.strerror}") from None
            with file:
                self._write_file(name, file)

    def delete(self, name: str) -> None:
        """Remove an object."""
        with explained(self._url(name)):
            s3_client.answer("delete_object", Bucket=self.bucket, Key=self._key(name))

    def lease(self, name: str) -> AbstractContextManager[Callable[[], None]]:
        """Hold an object that is written if no other process's is there, and renewed every few seconds."""
        return held(self, name)

    def write_if(self, name: str, content: bytes, version: str | None) -> str | None:
        """Write an object if its version is this one, None: if there is none; return its new version, else None.

        A server that knows no conditions writes it whatever is there.
        """
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        with explained(self._url(name)):
            try:
                return self._put(name, content, **condition)
            except Exception as error:
                if is_unknown(error):
                    return self._put(name, content)
                if not (is_changed(error) or (version is not None and is_missing(error))):
                    raise
        # the answer to the same request may have been lost, and it was sent again
        found = self.stat(name)
        return found.version if found is not None and self.read(name) == content else None

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}" if self.prefix else name

    def _url(self, name: str) -> str:
        return f"s3://{self.bucket}/{self._key(name)}"

    def _check_bucket(self) -> None:
        """Raise if the bucket is missing; a user who may only read objects may not ask, and it counts as there."""
        try:
            s3_client.client().head_bucket(Bucket=self.bucket)
        except Exception as error:
            if is_missing(error):
                raise UserError(f"{self._url('')}: {NO_BUCKET}") from None

    def _get(self, name: str, wanted: str, version: str | None) -> Any:
        same = {"IfMatch": version} if version else {}
        range_ = {} if wanted == "bytes=0-" else {"Range": wanted}
        return s3_client.answer(
            "get_object", "ContentLength", Bucket=self.bucket, Key=self._key(name), **range_, **same
        )

    def _write_file(self, name: str, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if size <= PART:
            self._put(name, file.read())
            return
        client, where = s3_client.client(), {"Bucket": self.bucket, "Key": self._key(name)}
        self._abort_leftovers(name)
        upload = s3_client.answer("create_multipart_upload", "UploadId", **where)["UploadId"]
        try:
            digests, parts = self._send_parts(file, size, {**where, "UploadId": upload})
            completed = self._complete({**where, "UploadId": upload}, parts)
        except BaseException:
            with suppress(Exception):
                client.abort_multipart_upload(**where, UploadId=upload)
            raise
        stored = self.stat(name)
        if stored is None or stored.size != size:
            raise UserError(f"{self._url(name)}: {size} bytes were sent, {stored.size if stored else 0} are stored")
        expected = [f'"{digest}"' for digest in digests]
        if [part["ETag"] for part in parts] != expected or completed.get("ETag") != _etag_of_parts(digests):
            file.seek(0)
            self._compare(name, _md5(file))

    def _complete(self, where: Mapping[str, str], parts: list[Part]) -> Mapping[str, Any]:
        """Make an object of the parts; an answer that says nothing if an earlier try has, whose answer was lost."""
        tries = 0

        def complete() -> Mapping[str, Any]:
            nonlocal tries
            tries += 1
            found: Mapping[str, Any] = s3_client.client().complete_multipart_upload(
                **where, MultipartUpload={"Parts": parts}
            )
            return found

        try:
            return s3_client.patiently(complete)
        except Exception as error:
            if tries > 1 and is_missing(error):
                return {}
            raise

    def _send_parts(self, file: BinaryIO, size: int, where: Mapping[str, str]) -> tuple[list[str], list[Part]]:
        """Send all parts; return the MD5 of each, and what completes the upload."""
        length = max(PART, -(-size // _MOST_PARTS))
        descriptor = file.fileno()

        def send(number: int) -> tuple[str, Part]:
            data = os.pread(descriptor, length, (number - 1) * length)
            if len(data) != min(length, size - (number - 1) * length):
                raise UserError(f"{file.name} became shorter while it was sent to {self._url('')}")
            md5 = hashlib.md5(data, usedforsecurity=False)
            content = {"Body": data, "ContentMD5": base64.b64encode(md5.digest()).decode()}
            answer = s3_client.answer("upload_part", "ETag", **where, **content, PartNumber=number)
            return md5.hexdigest(), {"PartNumber": number, "ETag": answer["ETag"]}

        with ThreadPoolExecutor(_UPLOADS, thread_name_prefix="s3-upload") as pool:
            pending = [pool.submit(send, number) for number in range(1, -(-size // length) + 1)]
            try:
                results = [future.result() for future in pending]
            finally:
                pool.shutdown(cancel_futures=True)
        return [digest for digest, _ in results], [part for _, part in results]

    def _put(self, name: str, data: bytes, **condition: str) -> str:
        """Write an object in one request; return its version."""
        md5 = hashlib.md5(data, usedforsecurity=False)
        content = {"Body": data, "ContentMD5": base64.b64encode(md5.digest()).decode()}
        where = {"Bucket": self.bucket, "Key": self._key(name)}
        answer = s3_client.answer("put_object", "ETag", **where, **content, **condition)
        if answer["ETag"] != f'"{md5.hexdigest()}"':
            self._compare(name, md5.hexdigest())
        return str(answer["ETag"])

    def _compare(self, name: str, expected: str) -> None:
        """Read an object back whose ETag is not its MD5; remove it if it is not what was sent."""
        with self.open(name) as file:
            found = _md5(file)
        if found != expected:
            self.delete(name)
            raise UserError(f"{self._url(name)}: the server stored something else than was sent; try again")

    def _abort_leftovers(self, name: str) -> None:
        """End earlier uploads of this object that never ended: their parts cost money, and no listing shows them."""
        client, key = s3_client.client(), self._key(name)
        with suppress(Exception):  # not every user and server may list uploads
            found = client.list_multipart_uploads(Bucket=self.bucket, Prefix=key).get("Uploads", ())
            for upload in islice(found, 100):
                if upload["Key"] == key:
                    client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload["UploadId"])


def _md5(file: BinaryIO) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while data := file.read(s3_client.PIECE):
        digest.update(data)
    return digest.hexdigest()


def _etag_of_parts(digests: list[str]) -> str:
    """Return the ETag that S3 gives an object uploaded in parts: the MD5 of the parts' MD5s, and their number."""
    joined = b"".join(bytes.fromhex(digest) for digest in digests)
    return f'"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(digests)}"'
