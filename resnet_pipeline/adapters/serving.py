"""What every served model does around its prediction: takes images in, keeps within its memory, refuses the rest.

In a server the size of an image, and the pixels of all requests that are being answered, have limits (settings). Sizes
are taken from the files' headers, before anything is decoded.
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from resnet_pipeline.adapters.mlflow.ensembles import COLUMN
from resnet_pipeline.data.image_files import ImageError, Limits, image_size
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.predictor import Image, checked
from resnet_pipeline.settings import settings, variable

_SERVER_VARIABLE = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # MLflow's scoring server sets it for the models that it runs

_NO_SPACE = dict.fromkeys(map(ord, " \t\r\n"))


_LEAST_PIXELS = 224 * 224  # each image, however small, is made as large as the network's input, and has its scores


class TooLargeError(UserError):
    """An image, or a request, that will never be taken."""


class BusyError(UserError):
    """A request that may be taken later."""


class Room:
    """The pixels of the requests that are being answered, ``most`` of them at once."""

    def __init__(self, most: int) -> None:
        self._most, self._taken, self._lock = most, 0, threading.Lock()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Hold so many pixels while inside. Raises TooLargeError for more than there ever are, BusyError for now."""
        limit = f"{self._most / 1e6:,.4g} megapixels ({variable('serving_megapixels')})"
        if pixels > self._most:
            raise TooLargeError(
                f"the request's images have {pixels / 1e6:,.4g} megapixels, more than {limit}; send fewer"
            )
        with self._lock:
            if self._taken + pixels > self._most:
                raise BusyError(f"the requests that are being answered have {limit} between them; send it again later")
            self._taken += pixels
        try:
            yield
        finally:
            with self._lock:
                self._taken -= pixels


class Door:
    """What lets requests in: each image within its limits, all of them within the memory, one prediction at a time."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()  # a server calls from many threads; each prediction uses all cores
        self._own, self._others = Limits.of_settings(), Limits.for_serving()
        self.room = Room(int(settings().serving_megapixels * 1e6))

    @contextmanager
    def opened(self, model_input: Any, largest: Callable[[int, int], int], how: str) -> Iterator[list[Image]]:
        """Yield the images of a request, a table with a column ``image``; ``largest`` is told height and width.

        It returns the pixels that such an image becomes; ``how`` says in a message by what. Every UserError of inside
        becomes a MlflowException with the code BAD_REQUEST (HTTP 400). In a server what is too large is HTTP 413, and a
        request for which there is no room now is TEMPORARILY_UNAVAILABLE (HTTP 503).
        """
        try:
            files = [_encoded(value, row) for row, value in enumerate(model_input[COLUMN], 1)]
            served = _is_served()
            with self.room.taken(self._pixels(files, largest, how)) if served else nullcontext():
                images = _decoded(files, self._others if served else self._own)
                with self._one_at_a_time:
                    yield images
        except UserError as error:
            raise refusal(error) from None

    def _pixels(self, files: list[bytes], largest: Callable[[int, int], int], how: str) -> int:
        """Return how many pixels a request's images have; TooLargeError, naming the image, if one has too many."""
        total = 0
        for row, data in enumerate(files, 1):
            try:
                self._others.check_bytes(len(data))
                height, width = image_size(data) or (0, 0)  # what is no image is decoded no further
                self._others.check_pixels(width, height)
            except ImageError as error:
                raise TooLargeError(f"image {row} is refused: {error}") from None
            pixels = largest(height, width) if height else 0
            if pixels > self._others.pixels:
                raise TooLargeError(f"image {row} is refused: {width}×{height} pixels become {pixels:,} {how}")
            total += max(pixels, _LEAST_PIXELS)
        return total


def _is_served() -> bool:
    return bool(os.environ.get(_SERVER_VARIABLE))


def _encoded(value: object, row: int) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        # MLflow decodes base64 in dataframe_records and dataframe_split, not in inputs and instances; no image file is
        # made of base64's characters alone
        return _from_base64(value) or bytes(value)
    if not isinstance(value, str):
        raise UserError(f"image {row} is of type {type(value).__name__}: send the file's bytes, or them as base64")
    served = _is_served()
    try:
        if not served:
            with suppress(FileNotFoundError, NotADirectoryError):
                return Path(value).expanduser().read_bytes()
    except (OSError, ValueError) as error:  # a long text of base64 is no possible file name
        if not (isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG):
            raise UserError(f"image {row}, {value!r}, can't be read: {error.strerror}") from None
    found = _from_base64(value)
    if found is None:
        what = "a server reads no paths: send the file's content" if served else "there is no file of that name either"
        raise UserError(f"image {row}, {value[:200]!r}, is text but not base64; {what}")
    return found


def _from_base64(value: str | bytes | bytearray) -> bytes | None:
    try:
        return base64.b64decode(value.translate(_NO_SPACE) if isinstance(value, str) else value, validate=True)
    except (binascii.Error, ValueError):
        return None


def _decoded(files: list[bytes], limits: Limits) -> list[Image]:
    if not files:
        raise UserError(f"no images: send a column {COLUMN!r} with at least one row")
    images = checked(files, limits)
    broken = [f"image {row} can't be decoded: {found}" for row, found in enumerate(images, 1) if isinstance(found, str)]
    if broken:
        raise UserError("; ".join(broken[:10]))
    return [image for image in images if isinstance(image, Image)]


def refusal(error: UserError) -> Exception:
    """Return what MLflow's server answers with: 413 for what is too large, 503 if it is busy, else 400."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST, TEMPORARILY_UNAVAILABLE

    code = TEMPORARILY_UNAVAILABLE if isinstance(error, BusyError) else BAD_REQUEST
    refusal: Exception = MlflowException(str(error), error_code=code)
    if isinstance(error, TooLargeError):  # MLflow has no code for it
        refusal.get_http_status_code = lambda: 413  # type: ignore[attr-defined]
    return refusal
