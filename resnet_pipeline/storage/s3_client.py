"""boto3's client of the environment's settings, made once for each, and calls that wait for a server that is away."""

from __future__ import annotations

import datetime
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from resnet_pipeline.storage.s3_errors import is_cut, reason_of

_log = logging.getLogger(__name__)

T = TypeVar("T")

PIECE = 2**20
"""Bytes of the pieces in which a download is read."""
EARLY = "the answer ended early"
_TRIES = 6  # connections in a row that are cut before they have received a piece
_WAIT, _LONGEST_WAIT = 0.1, 10.0  # seconds before the first of them; doubled each time, up to the longest
_READ_TIMEOUT = 60.0  # seconds without a byte
_SAID_AFTER = 30.0  # seconds without an answer, of one that has answered before: then a line says so
_PATIENCE = 300.0  # seconds without a piece or an answer, of a server that has answered before
_PATIENCE_AT_FIRST = 10.0  # of one that has not: more likely a wrong address


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


def client() -> Any:
    """Return this process's client for the environment's settings; clients serve many threads.

    Example: ``client().head_bucket(Bucket="images")``
    """
    here = _surroundings()
    known = here in _reached
    with _making:
        if (here, known) not in _clients:
            import boto3
            from botocore.config import Config

            tries = 3 if known else 2
            config = Config(
                connect_timeout=10 if known else 5,
                read_timeout=_READ_TIMEOUT if known else 8,
                # few: a server that takes requests and answers none is to be named before patience ends
                **({} if known and "AWS_MAX_ATTEMPTS" in os.environ else {"retries": {"total_max_attempts": tries}}),
                max_pool_connections=64,
                # Content-MD5 and ETag serve, on servers too that don't know the newer checksums
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            session = _sessions[here] = _sessions.get(here) or boto3.session.Session(botocore_session=_core())
            _clients[here, known] = session.client("s3", config=config)
        return _clients[here, known]


def _core() -> Any:
    """Return a session of botocore's that reads times as the standard library does.

    Its own way, dateutil's, takes 0.1 ms, and each object of a listing has a time: four fifths of what a listing costs,
    a minute and more of ImageNet's 1.33 million. The AWS command line has a parser of its own for the same reason.
    """
    import botocore.session

    session = botocore.session.get_session()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=read_time)
    return session


def read_time(text: Any) -> datetime.datetime:
    """Return a time as a server writes it: by ISO 8601, or in one of HTTP's ways.

    >>> read_time("2026-12-01T10:31:26.000Z")
    datetime.datetime(2026, 12, 1, 10, 31, 26, tzinfo=datetime.timezone.utc)
    """
    from botocore.utils import parse_timestamp

    try:
        return datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        found: datetime.datetime = parse_timestamp(text)
        return found


def answer(operation: str, field: str = "ResponseMetadata", **arguments: Any) -> Any:
    """Retry until the answer has a field: headers that are cut look like a success with nothing in it.

    Example: ``answer("head_object", "ContentLength", Bucket="images", Key="a.jpg")``
    """

    def ask() -> Any:
        found = getattr(client(), operation)(**arguments)
        if field not in found:
            raise ConnectionResetError(EARLY)
        return found

    return patiently(ask)


def patiently(call: Callable[[], T], received: Callable[[], int] = lambda: 0) -> T:
    """Call again, with twice the wait each time, while the connection is cut: the server may be starting again.

    A server that has answered before is given up after _PATIENCE seconds in which no piece more was ``received``, any
    other one after _TRIES calls or _PATIENCE_AT_FIRST seconds. One that was given up is not waited for again.

    Example: ``patiently(lambda: client().head_bucket(Bucket="images"))``
    """
    here = _surroundings()
    tries, counted, since = 0, 0, time.monotonic()
    while True:
        try:
            result = call()
        except Exception as error:
            if not is_cut(error):
                raise
            if received() - counted >= PIECE:
                tries, counted, since = 0, received(), time.monotonic()
            tries, silent, known = tries + 1, time.monotonic() - since, here in _reached
            if (tries >= _TRIES and not known) or silent >= (_PATIENCE if known else _PATIENCE_AT_FIRST):
                _reached.discard(here)
                raise
            if known and (tries >= _TRIES or silent >= _SAID_AFTER) and here not in _missed:
                _missed.add(here)
                _log.warning("S3: %s; waiting for it for up to %.0f minutes", reason_of(error), _PATIENCE / 60)
        else:
            _reached.add(here)
            if here in _missed:
                _missed.discard(here)
                _log.warning("S3 answers again")
            return result
        try:
            time.sleep(min(_WAIT * 2**tries, _LONGEST_WAIT))
        except BaseException:  # Ctrl-C: what ends now has no time to wait once more
            _reached.discard(here)
            raise
