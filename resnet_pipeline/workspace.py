"""Where the program keeps what it keeps: one root folder, and what settings of their own move elsewhere."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.errors import UserError

ROOT_VARIABLE = "RESNET_PIPELINE_ROOT"
DATA_VARIABLE = "RESNET_PIPELINE_DATA"
CACHE_VARIABLE = "RESNET_PIPELINE_CACHE"
CACHE_LIMIT_VARIABLE = "RESNET_PIPELINE_CACHE_GB"


@dataclass(frozen=True)
class Workspace:
    """The root: ``--root``, else the environment variable ``RESNET_PIPELINE_ROOT``, else ``./work``."""

    root: Path

    @classmethod
    def of(cls, root: Path | str | None = None) -> Workspace:
        """Return the workspace of an explicit root or of the environment's; the folder need not exist."""
        return cls(Path(root or os.environ.get(ROOT_VARIABLE) or "work").expanduser().resolve())

    @property
    def datasets(self) -> Path:
        """The folder of staged datasets, unless ``RESNET_PIPELINE_DATA`` names another place."""
        return self.root / "datasets"

    @property
    def data(self) -> str:
        """Where staged datasets lie: ``RESNET_PIPELINE_DATA``, a path or ``s3://bucket/prefix``; else ``datasets/``."""
        data = os.environ.get(DATA_VARIABLE) or str(self.datasets)
        return data.rstrip("/") if data.startswith("s3://") else str(Path(data).expanduser().resolve())

    @property
    def cache(self) -> Path:
        """Where shards from S3 are kept on this machine: ``RESNET_PIPELINE_CACHE``, else ``cache/``."""
        return Path(os.environ.get(CACHE_VARIABLE) or self.root / "cache").expanduser().resolve()

    @property
    def cache_limit(self) -> int | None:
        """The most bytes that the cache may take: ``RESNET_PIPELINE_CACHE_GB``; None for no limit."""
        text = os.environ.get(CACHE_LIMIT_VARIABLE)
        if not text:
            return None
        try:
            limit = float(text) * 1e9
        except ValueError:
            limit = 0.0
        if not 0 < limit < float("inf"):
            raise UserError(f"{CACHE_LIMIT_VARIABLE}={text} must be a positive number of gigabytes")
        return int(limit)

    @property
    def runs(self) -> Path:
        """Run directories, named by the run's identity."""
        return self.root / "runs"

    @property
    def scores(self) -> Path:
        """Score files, by dataset, split, protocol and weights."""
        return self.root / "scores"

    @property
    def reports(self) -> Path:
        """HTML reports."""
        return self.root / "reports"

    @property
    def mlflow(self) -> Path:
        """MLflow's SQLite file and artifacts, where no server is set."""
        return self.root / "mlflow"

    @property
    def prefect(self) -> Path:
        """Prefect's home: its SQLite file, where no server is set."""
        return self.root / "prefect"

    @property
    def services(self) -> Path:
        """Process ids and logs of what ``up`` started."""
        return self.root / "services"

    def dataset(self, name: str) -> str:
        """Return the address of the dataset of this name; UserError where a name is no plain folder name."""
        return f"{self.data}/{checked_name(name, 'dataset name')}"


def checked_name(name: str, what: str) -> str:
    """Return the name if it can be a folder of its own, else raise UserError naming it."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return name
    raise UserError(
        f"{what} {name!r} must start with a letter or digit and hold only letters, digits, '.', '_' and '-'"
    )
