"""Where the program keeps what it keeps: one root folder, and what settings of their own move elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import local_path

if TYPE_CHECKING:
    from resnet_pipeline.settings import Settings


@dataclass(frozen=True)
class Workspace:
    """The root: ``--root``, else the environment variable ``RESNET_PIPELINE_ROOT``, else ``./work``."""

    root: Path

    @classmethod
    def of(cls, root: Path | str | None = None) -> Workspace:
        """Return the workspace of an explicit root or of the environment's; the folder need not exist.

        Raises UserError if its path holds what the addresses of databases can't, and for an address of a bucket.
        """
        path = local_path(root or _settings().root)
        if found := [mark for mark in "?%" if mark in str(path)]:
            # in an address they mean something else: the databases of MLflow and Prefect would lie elsewhere
            raise UserError(f"the root {path} has a {found[0]!r} in its path; name another with --root")
        return cls(path)

    @property
    def datasets(self) -> Path:
        """The folder of staged datasets, unless ``RESNET_PIPELINE_DATA`` names another place."""
        return self.root / "datasets"

    @property
    def data(self) -> str:
        """Where staged datasets lie: ``RESNET_PIPELINE_DATA``, a path or ``s3://bucket/prefix``; else ``datasets/``."""
        data = _settings().data or str(self.datasets)
        return data.rstrip("/") if data.startswith("s3://") else str(local_path(data))

    @property
    def cache(self) -> Path:
        """Where shards from S3 are kept on this machine: ``RESNET_PIPELINE_CACHE``, else ``cache/``."""
        return local_path(_settings().cache or self.root / "cache")

    @property
    def cache_limit(self) -> int | None:
        """The most bytes that the cache may take: ``RESNET_PIPELINE_CACHE_GB``; None for no limit."""
        limit = _settings().cache_gb
        return None if limit is None else int(limit * 1e9)

    @property
    def runs(self) -> Path:
        """Run directories, named by the run's identity; copies, if they have a home."""
        return self.root / "runs"

    @property
    def home(self) -> str | None:
        """Where runs are kept for good: ``RESNET_PIPELINE_RUNS``, a path or ``s3://bucket/prefix``; None: in `runs`."""
        home = _settings().runs
        if home is None or home.startswith("s3://"):
            return home and home.rstrip("/")
        path = local_path(home)
        return None if path == self.runs else str(path)

    @property
    def scratch(self) -> Path:
        """Where a worker of a run that has a home works: on this machine's disk, beside the shards that it brought."""
        return self.cache / "runs"

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
        """MLflow's SQLite file and artifacts, if no server is set."""
        return self.root / "mlflow"

    @property
    def prefect(self) -> Path:
        """Prefect's home: its SQLite file, if no server is set."""
        return self.root / "prefect"

    @property
    def services(self) -> Path:
        """Process ids and logs of what ``up`` started."""
        return self.root / "services"

    def dataset(self, name: str) -> str:
        """Return the address of the dataset of this name; UserError if a name is no plain folder name."""
        return f"{self.data}/{checked_name(name, 'dataset name')}"


def _settings() -> Settings:
    from resnet_pipeline.settings import settings  # here: it imports pydantic, which `--help` need not wait for

    return settings()


def checked_name(name: str, what: str) -> str:
    """Return the name if it can be a folder of its own, else raise UserError naming it.

    >>> checked_name("mine", "dataset name")
    'mine'
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        return name
    raise UserError(
        f"{what} {name!r} must start with a letter or digit and hold only letters, digits, '.', '_' and '-'"
    )
