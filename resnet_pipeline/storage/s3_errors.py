"""What goes wrong with a bucket, in one line that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from resnet_pipeline.errors import UnavailableError, UserError
from resnet_pipeline.settings import cleaned, without_secrets

NO_BUCKET = "there is no such bucket; check the name"
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_EXPIRED = "the credentials have expired; renew them and start again: what is finished is kept"
_BUSY = ("SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded")
_REFUSED = {
    "InvalidAccessKeyId": f"the access key is not known there; {_CREDENTIALS}",
    "SignatureDoesNotMatch": f"the secret key does not fit the access key; {_CREDENTIALS}",
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "PreconditionFailed": "it changed while it was read; start again",
    "412": "it changed while it was read; start again",
    "InvalidBucketName": "that can't be a bucket's name",
    "EntityTooLarge": "it is larger than the server takes",
}


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn boto3's exceptions into UserErrors that begin with the object's address: UnavailableError if it was away.

    Example: ``with explained("s3://bucket/name"): client.head_object(Bucket="bucket", Key="name")``
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = reason_of(error)
        if reason is None:
            raise
        raise (UnavailableError if is_cut(error) else UserError)(f"{url}: {reason}") from None


def is_missing(error: Exception) -> bool:
    """Return whether the answer was that there is no such object or bucket."""
    return _code(error) in ("404", "NoSuchKey", "NoSuchBucket", "NotFound")


def is_changed(error: Exception) -> bool:
    """Return whether a request's condition did not hold."""
    return _code(error) in ("412", "PreconditionFailed", "409", "ConditionalRequestConflict")


def is_unknown(error: Exception) -> bool:
    """Return whether the server does not know what a header asks for."""
    return _code(error) in ("501", "NotImplemented")


def is_past_end(error: Exception) -> bool:
    """Return whether a range was asked for that begins at the end of the object or after it."""
    return _code(error) in ("416", "InvalidRange")


def is_wordless(error: Exception) -> bool:
    """Return whether a request was refused without a reason: the answer to HEAD has no body that could hold one."""
    return _code(error) in ("400", "403")


def is_cut(error: Exception) -> bool:
    """Return whether the connection failed or the server was in trouble, so that the same may succeed later."""
    from botocore.exceptions import ConnectionError as NotConnected
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    status = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    busy = status == 429 or _code(error) in _BUSY
    return (
        busy
        or (status >= 500 and status != 501)
        or isinstance(error, (NotConnected, HTTPClientError, IncompleteReadError, ConnectionError))
    )


def reason_of(error: Exception) -> str | None:
    """Return what went wrong with S3, in a line; None for what has nothing to do with it.

    Example: ``reason_of(EndpointConnectionError(endpoint_url="http://127.0.0.1:9"))``
    """
    from botocore.exceptions import (
        BotoCoreError,
        ConnectTimeoutError,
        EndpointConnectionError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    # before any answer: no credentials, no connection
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return f"no credentials for S3; {_CREDENTIALS}"
    if isinstance(error, (EndpointConnectionError, ConnectTimeoutError)):
        address = urlsplit(without_secrets(error.kwargs["endpoint_url"]))
        return f"no connection to {address.scheme}://{address.netloc}; check the network and AWS_ENDPOINT_URL"
    # the server answered: what its code means
    code = _code(error)
    if code == "NoSuchBucket":
        return NO_BUCKET
    if is_missing(error):
        return "does not exist"
    if code in _REFUSED:
        return _REFUSED[code]
    if code in ("403", "AccessDenied", "Forbidden", "AllAccessDisabled"):
        return "access is forbidden; check the credentials and the bucket's policy"
    if code:
        answer = _answer(error)["Error"]
        return f"the server refuses: {' '.join(str(answer.get('Message') or code).split())}"
    # no answer, and no refusal: a bad connection, or something of this machine
    if is_cut(error):
        return f"the connection was cut again and again ({_line(error)})"
    if isinstance(error, (BotoCoreError, ValueError)):
        return _line(error)
    if isinstance(error, OSError):
        return error.strerror or _line(error)
    return None


def _answer(error: Exception) -> dict[str, Any]:
    answer = getattr(error, "response", None)
    return answer if isinstance(answer, dict) else {}


def _code(error: Exception) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))


def _line(error: Exception) -> str:
    return cleaned(" ".join(str(error).split())) or type(error).__name__
