"""What MLflow shows of a run beside its metrics: experiment, name, source, user, dataset; and where its page is."""

from __future__ import annotations

import getpass
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from resnet_pipeline import __version__
from resnet_pipeline.config import RunConfig
from resnet_pipeline.config_io import assignment
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.recipes import changes_of
from resnet_pipeline.settings import without_secrets

FLOW_RUN_ID, FLOW_RUN_NAME, FLOW_RUN_PAGE = "prefect.flow_run_id", "prefect.flow_run", "prefect.flow_run_page"
"""Tags of a run that a Prefect flow has started; whoever starts the training fills them in."""

PARENT = "mlflow.parentRunId"
"""MLflow's tag of a run that its pages fold under another one."""

_NAME_LENGTH = 120
_DIGEST_LENGTH = 36  # MLflow's limit
_ML = "?workflowType=machine_learning"  # without it MLflow 3 opens on a page for language models


def experiment_of(dataset: str) -> str:
    """Return the name of the experiment of all runs on a dataset, which comes first: MLflow's columns are narrow.

    >>> experiment_of("digits")
    'digits (resnet-pipeline)'
    """
    return f"{dataset} (resnet-pipeline)"


def run_title(config: RunConfig) -> str:
    """Return the name of a run in MLflow's lists, whose columns are narrow: what tells it from others comes first.

    >>> from resnet_pipeline.config_io import with_overrides
    >>> from resnet_pipeline.recipes import get_recipe
    >>> run_title(with_overrides(get_recipe("imagenet/resnet50"), {"seed": 1, "optim.lr": 0.2}))
    'resnet50 · seed 1 · imagenet · optim.lr=0.2'
    """
    family, _, network = config.recipe.rpartition("/")
    try:
        changes = [assignment(key, value) for key, value in changes_of(config).items() if key != "seed"]
    except UserError:  # a recipe that this version does not have
        changes = []
    title = " · ".join([network, f"seed {config.seed}", *([family] if family else []), *changes])
    return title if len(title) <= _NAME_LENGTH else f"{title[: _NAME_LENGTH - 1]}…"


def origin_tags() -> dict[str, str]:
    """Return MLflow's own tags of a run's source and user; no user if the system names none (a bare container)."""
    tags = {"mlflow.source.name": f"resnet-pipeline {__version__}", "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError, ImportError):
        tags["mlflow.user"] = getpass.getuser()
    return tags


def dataset_input(dataset: Dataset, use: str) -> Any:
    """Return a dataset as an input of a run, for training or testing.

    Its digest is the beginning of the fingerprint, its source the address of the staged dataset.
    """
    from mlflow.entities import Dataset as Logged
    from mlflow.entities import DatasetInput, InputTag

    url = without_secrets(dataset.storage.url)
    scheme = url.partition("://")[0] if "://" in url else "local"
    profile = {
        **{split: len(samples) for split, samples in dataset.splits.items()},
        "classes": len(dataset.classes),
        "fingerprint": dataset.fingerprint,
    }
    logged = Logged(
        name=dataset.name,
        digest=dataset.fingerprint[:_DIGEST_LENGTH],
        source_type=scheme,
        source=json.dumps({"uri": url}),
        profile=json.dumps(profile),
    )
    return DatasetInput(dataset=logged, tags=[InputTag("mlflow.data.context", use)])


def experiments_page(uri: str, experiment: str | None = None) -> str:
    """Return the address of an experiment's runs, or of all experiments; of a store without a server, a command.

    >>> experiments_page("http://127.0.0.1:5000", "3")
    'http://127.0.0.1:5000/#/experiments/3?workflowType=machine_learning'
    """
    return _opened(uri, f"experiments/{experiment}" if experiment else "experiments")


def run_page(uri: str, experiment: str, run: str) -> str:
    """Return the address of a run, as ``experiments_page`` does.

    >>> run_page("http://127.0.0.1:5000", "3", "12ab")
    'http://127.0.0.1:5000/#/experiments/3/runs/12ab?workflowType=machine_learning'
    """
    return _opened(uri, f"experiments/{experiment}/runs/{run}")


def version_page(uri: str, name: str, version: str) -> str:
    """Return the address of a registered version, as ``experiments_page`` does.

    >>> version_page("http://127.0.0.1:5000", "digits-resnet8", "1")
    'http://127.0.0.1:5000/#/models/digits-resnet8/versions/1?workflowType=machine_learning'
    """
    return _opened(uri, f"models/{name}/versions/{version}")


def _opened(uri: str, page: str) -> str:
    address = without_secrets(uri)
    if address.startswith("http"):
        return f"{address.rstrip('/')}/#/{page}{_ML}"
    program = Path(sys.executable).with_name("mlflow")  # by its path: the reader's shell may not have it on its own
    return f"{program} server --backend-store-uri {address} --port 5000   # then http://127.0.0.1:5000/#/{page}{_ML}"
