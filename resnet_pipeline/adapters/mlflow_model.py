"""What ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` run for a registered network or ensemble; no pickle.

In: a column ``image``, a row per image: an encoded file's bytes, the same as base64, or (not in a server, where it
would let a client read the server's files) a path. Out, per image: the best ``labels``, their ``words`` and
``probabilities``, best first. Parameters: ``top`` (5) and ``protocol`` (center, 10-crop, multi-scale).
"""

from __future__ import annotations

import base64
import binascii
import errno
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from resnet_pipeline.adapters.mlflow.ensembles import COLUMN, DEFAULTS, load_members, model_folder
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.predictor import Image, Predictor, checked

_SERVER_VARIABLE = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # MLflow's scoring server sets it for the models that it runs

_NO_SPACE = dict.fromkeys(map(ord, " \t\r\n"))


class ServedModel:
    """A network or an ensemble as an MLflow python function."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._one_at_a_time = threading.Lock()  # a server calls from many threads; each prediction uses all cores

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return a DataFrame with the columns labels, words and probabilities, for one with a column ``image``.

        Raises MlflowException with the code BAD_REQUEST (HTTP 400), which says which image or parameter is wrong.
        """
        import pandas

        options = {**DEFAULTS, **(params or {})}
        try:
            images = _decoded([_encoded(value, row) for row, value in enumerate(model_input[COLUMN], 1)])
            if options["top"] < 1:
                raise UserError(f"the parameter top must be at least 1, not {options['top']}")
            with self._one_at_a_time:
                found = self._predictor.predict(images, protocol=options["protocol"], top=options["top"])
        except UserError as error:
            raise _bad_request(str(error)) from None
        classes, words = self._predictor.classes, self._predictor.class_words
        return pandas.DataFrame(
            {
                "labels": [[classes[k] for k in row] for row in found.classes],
                "words": [[words[k] for k in row] for row in found.classes],
                "probabilities": [row.tolist() for row in found.probabilities.astype(float)],
            }
        )


def _load_pyfunc(path: str) -> ServedModel:
    """MLflow's entry point: ``path`` is the folder that was logged."""
    try:
        return ServedModel(Predictor(load_members(Path(path), _download), local_device()))
    except UserError as error:
        raise _bad_request(str(error)) from None


@contextmanager
def _download(reference: str) -> Iterator[Path]:
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        yield model_folder(Path(mlflow.artifacts.download_artifacts(reference, dst_path=folder)), reference)


def _encoded(value: object, row: int) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        # MLflow decodes base64 in dataframe_records and dataframe_split, not in inputs and instances; no image file is
        # made of base64's characters alone
        return _from_base64(value) or bytes(value)
    if not isinstance(value, str):
        raise UserError(f"image {row} is of type {type(value).__name__}: send the file's bytes, or them as base64")
    served = bool(os.environ.get(_SERVER_VARIABLE))
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


def _decoded(files: list[bytes]) -> list[Image]:
    if not files:
        raise UserError(f"no images: send a column {COLUMN!r} with at least one row")
    images = checked(files)
    broken = [f"image {row} can't be decoded: {found}" for row, found in enumerate(images, 1) if isinstance(found, str)]
    if broken:
        raise UserError("; ".join(broken[:10]))
    return [image for image in images if isinstance(image, Image)]


def _bad_request(reason: str) -> Exception:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    error: Exception = MlflowException(reason, error_code=BAD_REQUEST)
    return error
