"""MLflow's client: which server, how it is set up, and its errors as one line."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resnet_pipeline.errors import UnavailableError, UserError
from resnet_pipeline.settings import cleaned, surroundings, without_secrets
from resnet_pipeline.workspace import Workspace


class TrackingError(UserError):
    """MLflow did not answer or refused."""


class TrackingAwayError(TrackingError, UnavailableError):
    """MLflow did not answer, or was in trouble."""


def tracking_uri(workspace: Workspace) -> str:
    """Return MLFLOW_TRACKING_URI, else the SQLite file in the workspace.

    Example: ``tracking_uri(Workspace.of())``
    """
    return surroundings().mlflow_tracking_uri or f"sqlite:///{workspace.mlflow / 'mlflow.db'}"


def connect(uri: str) -> Any:
    """Return an MlflowClient of an address, with MLflow set up to be quiet and impatient."""
    _set_up()
    import mlflow

    from resnet_pipeline.adapters.mlflow.artifacts import be_patient  # MLflow's import takes seconds

    be_patient()
    if uri.startswith("sqlite:///"):
        make_database(Path(uri.removeprefix("sqlite:///")))
    set_before = surroundings().mlflow_tracking_uri
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    # MLflow puts the address into the environment too, where the next workspace of this process would take it for
    # the user's own setting
    if set_before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    return mlflow.MlflowClient(uri, uri)


def make_database(file: Path) -> None:
    """Make MLflow's SQLite database, whole or not at all, unless it is there.

    MLflow makes it in dozens of migrations, and a process killed between two of them leaves a file that neither it nor
    a later one can use. So it is made beside, and appears under its name when all is in it.
    """
    if file.exists():
        return
    _set_up()
    import mlflow

    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        new = Path(folder) / file.name
        mlflow.MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
        try:
            file.hardlink_to(new)  # unlike a renaming it never replaces what another process has made meanwhile
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            new.rename(file)


def _set_up() -> None:
    """Let MLflow be quiet and impatient; before it is imported."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # of what a database refuses it would print the stack and the statement; `guarded` says it in a line
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # that MLflow is away is said once by the sender; urllib3 would say it at every try
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def guarded(call: Callable[[], Any]) -> Any:
    """Run a call to MLflow; what it or its transport raises becomes a TrackingError of one line."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    try:
        return call()
    except ImportError as error:  # a database's driver
        raise TrackingError(f"MLflow: {error}, which MLFLOW_TRACKING_URI needs; install it with pip") from error
    except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        # SQLAlchemy says what it was doing before it says what a database's driver said
        text = next((line for line in lines if re.match(r"\(\w+\.\w+\) ", line)), lines[0])
        if re.search("readonly database|disk I/O error|disk is full", text):
            raise TrackingError(f"MLflow's database can't be written: {text.partition(') ')[2]}") from error
        if away := re.search(
            r"request to (\w+://[^/]+)\S* failed with (?:timeout|exception .*(?:retries|onnect))", text
        ):
            raise TrackingAwayError(
                f"MLflow at {without_secrets(away[1])} does not answer; start its server, or mend MLFLOW_TRACKING_URI"
            ) from error
        if gone := re.match(r"The (run|experiment) (\S+) must be in the 'active' state", text):
            restore = f"mlflow {gone[1]}s restore --{gone[1]}-id {gone[2]}"
            raise TrackingError(f"MLflow's {gone[1]} {gone[2]} was deleted; bring it back with: {restore}") from error
        passes = isinstance(error, (OperationalError, ConnectionError, TimeoutError))
        raise (TrackingAwayError if passes else TrackingError)(f"MLflow: {cleaned(text)[:300]}") from error
