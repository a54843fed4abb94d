"""How registered models are served, by what they were trained for: the module that loads them, and what goes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from resnet_pipeline.adapters.mlflow.ensembles import COLUMN, DEFAULTS
from resnet_pipeline.config import TaskName


@dataclass(frozen=True)
class Served:
    """The module of this program that MLflow loads a model by, and what makes its MLflow signature."""

    loader_module: str
    signature: Callable[[], Any]


def classifier_signature() -> Any:
    """Return the signature of networks and ensembles: an image in, its best classes out."""
    from mlflow.types import DataType, ParamSpec

    kinds = {"labels": DataType.string, "words": DataType.string, "probabilities": DataType.double}
    params = [ParamSpec("top", DataType.long, DEFAULTS["top"])]
    return _signature(kinds, [*params, ParamSpec("protocol", DataType.string, DEFAULTS["protocol"])])


def detector_signature() -> Any:
    """Return the detectors' signature: an image in, its objects out."""
    from mlflow.types import DataType, ParamSpec

    return _signature({**_objects(), "masks": DataType.string}, [ParamSpec("least_score", DataType.double, 0.5)])


def localiser_signature() -> Any:
    """Return the localisers' signature: an image, and classes of it, in; a box for each out."""
    from mlflow.types import ColSpec, DataType, ParamSpec
    from mlflow.types.schema import Array

    classes = ColSpec(Array(DataType.string), CLASSES, required=False)
    return _signature(_objects(), [ParamSpec("top", DataType.long, TOP)], classes)


CLASSES, TOP = "classes", 5
"""A localiser's column of classes, and how many of its classifier's likeliest get a box where there are none."""

SERVED: dict[TaskName, Served] = {
    "classification": Served("resnet_pipeline.adapters.mlflow_model", classifier_signature),
    "detection": Served("resnet_pipeline.adapters.mlflow_detector", detector_signature),
    "localisation": Served("resnet_pipeline.adapters.mlflow_localiser", localiser_signature),
}
"""By task."""


def _objects() -> dict[str, Any]:
    from mlflow.types import DataType
    from mlflow.types.schema import Array

    text = DataType.string
    return {"boxes": Array(DataType.double), "labels": text, "words": text, "scores": DataType.double}


def _signature(of: dict[str, Any], params: list[Any], *more: Any) -> Any:
    """Return a signature: a column of images and ``more`` in, a list of each kind ``of`` an image out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, Schema
    from mlflow.types.schema import Array

    return ModelSignature(
        Schema([ColSpec(DataType.binary, COLUMN), *more]),
        Schema([ColSpec(Array(kind), name) for name, kind in of.items()]),
        ParamSchema(params),
    )
