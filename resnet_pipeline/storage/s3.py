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
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from resnet_pipeline.errors import UserError
from resnet_pipeline.storage.base import Stored
from resnet_pipeline.storage.lease import held
from resnet_pipeline.storage.ranged_file import read_ahead
from resnet_pipeline.storage.s3_errors import (
    NO_BUCKET,
    explained,
    is_changed,
    is_cut,
    is_missing,
    is_past_end,
    is_unknown,
    is_wordless,
    reason_of,
)

_log = logging.getLogger(__name__)

PART = 16 * 2**20
"""Bytes of an upload's part; larger if a file would have more than S3's 10,000 parts."""

_MOST_PARTS = 10_000
_UPLOADS = 8  # parts of one file that are under way at once
_PIECE = 2**20  # a download is read in pieces of this size
_TRIES = 6  # connections in a row that are cut before they have received a piece
_EARLY = "the answer ended early"
_WAIT, _LONGEST_WAIT = 0.1, 10.0  # seconds before the first of them; doubled each time, up to the longest
_PATIENCE = 300.0  # seconds without a piece or an answer, of a server that has answered before
_PATIENCE_AT_FIRST = 10.0  # of one that has not: more likely a wrong address


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
            listing = _client().get_paginator("list_objects_v2")
            for page in listing.paginate(Bucket=self.bucket, Prefix=self._key(prefix)):
                if "Name" not in page:
                    raise ConnectionResetError(_EARLY)
                found += [
                    Stored(entry["Key"][len(self._key("")) :], entry["Size"], entry["ETag"])
                    for entry in page.get("Contents", ())
                    if not entry["Key"].endswith("/")
                ]
            return found

        with explained(self._url(prefix)):
            return sorted(_patiently(listed), key=lambda stored: stored.name)

    def stat(self, name: str) -> Stored | None:
        """Return size and ETag of an object, None if there is none; UserError if the bucket is missing."""
        with explained(self._url(name)):
            try:
                head = _answer("head_object", "ContentLength", Bucket=self.bucket, Key=self._key(name))
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
                while got < size and (piece := taken["Body"].read(min(_PIECE, size - got))):
                    found.append(piece)
                    got += len(piece)
                if got < size:
                    raise ConnectionResetError(_EARLY)

            _patiently(receive, lambda: got)
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
            _answer("delete_object", Bucket=self.bucket, Key=self._key(name))

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
            _client().head_bucket(Bucket=self.bucket)
        except Exception as error:
            if is_missing(error):
                raise UserError(f"{self._url('')}: {NO_BUCKET}") from None

    def _get(self, name: str, wanted: str, version: str | None) -> Any:
        same = {"IfMatch": version} if version else {}
        range_ = {} if wanted == "bytes=0-" else {"Range": wanted}
        return _answer("get_object", "ContentLength", Bucket=self.bucket, Key=self._key(name), **range_, **same)

    def _write_file(self, name: str, file: BinaryIO) -> None:
        size = os.fstat(file.fileno()).st_size
        if size <= PART:
            self._put(name, file.read())
            return
        client, where = _client(), {"Bucket": self.bucket, "Key": self._key(name)}
        self._abort_leftovers(name)
        upload = _answer("create_multipart_upload", "UploadId", **where)["UploadId"]
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
            found: Mapping[str, Any] = _client().complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
            return found

        try:
            return _patiently(complete)
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
            answer = _answer("upload_part", "ETag", **where, **content, PartNumber=number)
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
        answer = _answer("put_object", "ETag", **where, **content, **condition)
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
        client, key = _client(), self._key(name)
        with suppress(Exception):  # not every user and server may list uploads
            found = client.list_multipart_uploads(Bucket=self.bucket, Prefix=key).get("Uploads", ())
            for upload in islice(found, 100):
                if upload["Key"] == key:
                    client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload["UploadId"])


_clients: dict[Any, Any] = {}
_sessions: dict[Any, Any] = {}  # a second client of a session finds what boto3 knows of S3 already parsed
_making = threading.Lock()
_reached: set[Any] = set()
"""The surroundings in which a server has answered this process, and is waited for if it does not now."""
_missed: set[Any] = set()
"""Those in which it is waited for."""


def _surroundings() -> Any:
    """Return what a client depends on: the environment's settings, and the process; none serves a forked child."""
    return (os.getpid(), *sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))


def _client() -> Any:
    """Return this process's client for the environment's settings; clients serve many threads."""
    here = _surroundings()
    known = here in _reached
    with _making:
        if (here, known) not in _clients:
            import boto3
            from botocore.config import Config

            config = Config(
                connect_timeout=10 if known else 5,
                read_timeout=60 if known else 8,
                **({} if known else {"retries": {"total_max_attempts": 2}}),
                max_pool_connections=64,
                # Content-MD5 and ETag serve, on servers too that don't know the newer checksums
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            session = _sessions[here] = _sessions.get(here) or boto3.session.Session()
            _clients[here, known] = session.client("s3", config=config)
        return _clients[here, known]


def _answer(operation: str, field: str = "ResponseMetadata", **arguments: Any) -> Any:
    """Retry until the answer has a field: headers that are cut look like a success with nothing in it."""

    def ask() -> Any:
        answer = getattr(_client(), operation)(**arguments)
        if field not in answer:
            raise ConnectionResetError(_EARLY)
        return answer

    return _patiently(ask)


def _patiently(call: Callable[[], T], received: Callable[[], int] = lambda: 0) -> T:
    """Call again, with twice the wait each time, while the connection is cut: the server may be starting again.

    A server that has answered before is given up after _PATIENCE seconds in which no piece more was ``received``, any
    other one after _TRIES calls or _PATIENCE_AT_FIRST seconds. One that was given up is not waited for again.
    """
    here = _surroundings()
    tries, counted, since = 0, 0, time.monotonic()
    while True:
        try:
            answer = call()
        except Exception as error:
            if not is_cut(error):
                raise
            if received() - counted >= _PIECE:
                tries, counted, since = 0, received(), time.monotonic()
            tries, silent, known = tries + 1, time.monotonic() - since, here in _reached
            if (tries >= _TRIES and not known) or silent >= (_PATIENCE if known else _PATIENCE_AT_FIRST):
                _reached.discard(here)
                raise
            if known and tries == _TRIES and here not in _missed:
                _missed.add(here)
                _log.warning("S3: %s; waiting for it for up to %.0f minutes", reason_of(error), _PATIENCE / 60)
        else:
            _reached.add(here)
            if here in _missed:
                _missed.discard(here)
                _log.warning("S3 answers again")
            return answer
        try:
            time.sleep(min(_WAIT * 2**tries, _LONGEST_WAIT))
        except BaseException:  # Ctrl-C: what ends now has no time to wait once more
            _reached.discard(here)
            raise


def _md5(file: BinaryIO) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while data := file.read(_PIECE):
        digest.update(data)
    return digest.hexdigest()


def _etag_of_parts(digests: list[str]) -> str:
    """Return the ETag that S3 gives an object uploaded in parts: the MD5 of the parts' MD5s, and their number."""
    joined = b"".join(bytes.fromhex(digest) for digest in digests)
    return f'"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(digests)}"'
