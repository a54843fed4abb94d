"""What ``mlflow.pyfunc.load_model`` and ``mlflow models serve`` run for a registered network or ensemble; no pickle.

In: a column ``image``, a row per image: an encoded file's bytes, the same as base64, or (not in a server, where it
would let a client read the server's files) a path. Out, per image: the best ``labels``, their ``words`` and
``probabilities``, best first. Parameters: ``top`` (5) and ``protocol`` (center, 10-crop, multi-scale).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from resnet_pipeline.adapters.mlflow.ensembles import DEFAULTS, load_members, model_folder
from resnet_pipeline.adapters.serving import Door, refusal
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.predictor import Predictor


class ServedModel:
    """A network or an ensemble as an MLflow python function."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._door = predictor, Door()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return a DataFrame with the columns labels, words and probabilities, for one with a column ``image``.

        Raises MlflowException, which says which image or parameter is wrong, with the code BAD_REQUEST (HTTP 400). In a
        server what is too large is HTTP 413, and a request for which there is no room now is TEMPORARILY_UNAVAILABLE
        (HTTP 503).
        """
        import pandas

        options = {**DEFAULTS, **(params or {})}
        protocol: str = options["protocol"]
        with self._door.opened(model_input, partial(self._largest, protocol), f"with {protocol}") as images:
            if options["top"] < 1:
                raise UserError(f"the parameter top must be at least 1, not {options['top']}")
            found = self._predictor.predict(images, protocol=protocol, top=options["top"])
        classes, words = self._predictor.classes, self._predictor.class_words
        return pandas.DataFrame(
            {
                "labels": [[classes[k] for k in row] for row in found.classes],
                "words": [[words[k] for k in row] for row in found.classes],
                "probabilities": [row.tolist() for row in found.probabilities.astype(float)],
            }
        )

    def _largest(self, protocol: str, height: int, width: int) -> int:
        return self._predictor.largest(height, width, protocol)


def _load_pyfunc(path: str) -> ServedModel:
    """MLflow's entry point: ``path`` is the folder that was logged."""
    try:
        return ServedModel(Predictor(load_members(Path(path), download), local_device()))
    except UserError as error:
        raise refusal(error) from None


@contextmanager
def download(reference: str) -> Iterator[Path]:
    """Yield the folder of a registered model that another one refers to."""
    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        yield model_folder(Path(mlflow.artifacts.download_artifacts(reference, dst_path=folder)), reference)
