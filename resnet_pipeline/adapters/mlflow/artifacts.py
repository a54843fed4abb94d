"""Files to and from MLflow's server, in the time that they take: its one limit for requests is made for metrics."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.store.artifact import artifact_repository_registry
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

_SLOWEST = 250_000  # bytes a second that are waited for
_SECONDS_FOR_A_FILE_TO_BEGIN = 300.0
_PIECE = 2**20


def be_patient() -> None:
    """Let this process send and fetch an MLflow server's files by `PatientArtifacts`."""
    artifact_repository_registry._artifact_repository_registry.register("mlflow-artifacts", PatientArtifacts)


class PatientArtifacts(MlflowArtifactsRepository):  # type: ignore[misc]
    """An MLflow server's files. A transfer may take any time, as long as it gets ahead.

    MLflow's limit (MLFLOW_HTTP_REQUEST_TIMEOUT) holds for each piece that is sent. A server, or a proxy before it, that
    takes a file at once and passes it on afterwards is silent meanwhile: for its answer the file's size counts.
    """

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Send a file into a folder of the run's, or the model's."""
        if self._should_multipart_upload(local_file):
            super().log_artifact(local_file, artifact_path)
            return
        file = Path(local_file)
        limit = float(MLFLOW_HTTP_REQUEST_TIMEOUT.get())
        with file.open("rb") as content:
            self._ask(
                posixpath.join("/", artifact_path or "", file.name),
                "PUT",
                timeout=(limit, limit + file.stat().st_size / _SLOWEST),
                data=content,
                extra_headers={"Content-Type": "application/octet-stream"},
            )

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        if self._is_multipart_download_enabled():
            super()._download_file(remote_file_path, local_path)
            return
        timeout = (float(MLFLOW_HTTP_REQUEST_TIMEOUT.get()), _SECONDS_FOR_A_FILE_TO_BEGIN)
        with (
            self._ask(posixpath.join("/", remote_file_path), "GET", timeout=timeout, stream=True) as answer,
            Path(local_path).open("wb") as target,
        ):
            for piece in answer.iter_content(_PIECE):
                target.write(piece)

    def _ask(self, name: str, method: str, *, timeout: tuple[float, float], **options: Any) -> Any:
        """Make a request: ``timeout`` are seconds for a piece to be taken, and for an answer to begin or go on."""
        answer = http_request(self._host_creds, name, method, timeout=timeout, **options)
        augmented_raise_for_status(answer)
        return answer
