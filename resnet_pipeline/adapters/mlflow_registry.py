"""MLflow's model registry: a finished network becomes a version; a reference becomes files again."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_pipeline import __version__
from resnet_pipeline.adapters.mlflow_tracking import Tracking, _guarded
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.members import MODEL_FILES
from resnet_pipeline.training.run_directory import RunDirectory

CANDIDATE = "candidate"
"""The alias that each newly registered version takes."""


@dataclass(frozen=True)
class ModelVersion:
    """A registered version; ``new`` says whether this call made it."""

    name: str
    version: str
    new: bool

    @property
    def uri(self) -> str:
        """The reference that MLflow and this program take."""
        return f"models:/{self.name}/{self.version}"

    def __str__(self) -> str:
        return f"{self.name} version {self.version} @{CANDIDATE}"


def register(tracking: Tracking, run: RunDirectory, *, tags: Mapping[str, str]) -> ModelVersion:
    """Register a finished run's weights as a version of the model named after its recipe, alias ``candidate``.

    The same weights are registered once: a second call finds the version. Raises UserError for an unfinished run and
    TrackingError where MLflow is away.
    """
    result = run.result()
    if result is None:
        raise UserError(f"run {run.name} is not finished; train it to its end before registering it")
    config, digest = run.config(), result["weights_sha256"]
    name = config.recipe.replace("/", "-")
    client = tracking.client
    found = _guarded(lambda: client.search_model_versions(f"name = '{name}'"))
    for version in found:
        if version.tags.get("weights_sha256") == digest and version.tags.get("run") == run.name:
            return ModelVersion(name, str(version.version), new=False)
    version_number = _guarded(lambda: _log_model(tracking, run, name))
    own_tags = {
        "weights_sha256": digest,
        "run": run.name,
        "recipe": config.recipe,
        "dataset_fingerprint": run.dataset()["fingerprint"],
    }
    for key, value in {**own_tags, **tags}.items():
        _guarded(lambda key=key, value=value: client.set_model_version_tag(name, version_number, key, value))  # type: ignore[misc]
    _guarded(lambda: client.set_registered_model_alias(name, CANDIDATE, version_number))
    return ModelVersion(name, version_number, new=True)


def fetch_model(tracking: Tracking, reference: str) -> Path:
    """Return a folder with the weights and config of ``models:/name/version``, ``models:/name@alias`` or ``runs:/id``.

    Raises UserError where the reference points nowhere or at a model that this program did not register.
    """
    import mlflow

    if reference.startswith("runs:/") and reference.count("/") == 1:
        reference += "/model"
    _ = tracking.client  # connects, and sets MLflow's own global address
    folder = Path(_guarded(lambda: mlflow.artifacts.download_artifacts(reference)))
    if (folder / "data").is_dir():
        folder = next(p for p in (folder / "data").iterdir() if p.is_dir())
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{reference} holds no {missing[0]}: it was not registered by resnet-pipeline")
    return folder


def _log_model(tracking: Tracking, run: RunDirectory, name: str) -> str:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    crop = run.config().views.crop
    classes = len(run.dataset()["classes"])
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, crop, crop, 3))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, classes))]),
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "network"
        folder.mkdir()
        for file in MODEL_FILES:
            shutil.copy(run.path / file, folder / file)
        with warnings.catch_warnings():
            # an input example would be served once here, to check a signature that is written out above
            warnings.filterwarnings("ignore", message=".*input example.*")
            with mlflow.start_run(run_id=tracking.run_id(run)):
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    loader_module="resnet_pipeline.adapters.mlflow_model",
                    data_path=str(folder),
                    signature=signature,
                    pip_requirements=[f"resnet-pipeline=={__version__}"],
                )
    client = tracking.client
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(
        name, f"models:/{logged.model_id}", run_id=tracking.run_id(run), model_id=logged.model_id
    )
    return str(version.version)
