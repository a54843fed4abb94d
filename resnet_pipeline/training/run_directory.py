"""A run on disk: its identity, config, metrics, checkpoints, final weights and result; and where it is kept for good.

    <recipe>-<dataset fingerprint>-s<seed>-<config hash>/
      config.json  metrics.jsonl  result.json  weights.safetensors  checkpoints/  (initial.safetensors)

Starting the same run again finds the same directory and resumes; a different config never does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from resnet_pipeline.config import RunConfig
from resnet_pipeline.config_io import config_hash, to_dict
from resnet_pipeline.data.manifest import DatasetFacts, read_run_config
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import write_json
from resnet_pipeline.models.weights import check_weights
from resnet_pipeline.records import plain_record
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.result import RunResult
from resnet_pipeline.training.signals import ERROR, OWNER, FileSignals, Signals
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_HOME_LOCK, _FOLLOWER_LOCK = ".lock", ".follower.lock"
_SECONDS_BETWEEN_CHECKS = 15.0

RunState = Literal["running", "interrupted", "finished", "failed", "damaged"]
"""An interrupted run, and one that has failed, resumes when it is started again; a damaged one has lost a file."""


def run_name(config: RunConfig, dataset_fingerprint: str) -> str:
    """Return the directory name of a run: recipe, dataset, seed and everything else of the config.

    Example: ``run_name(get_recipe("digits/resnet8"), dataset.fingerprint)``
    """
    recipe = config.recipe.replace("/", "-")
    return f"{recipe}-{dataset_fingerprint[:8]}-s{config.seed}-{config_hash(config)}"


class RunDirectory:
    """Paths and small files of one run.

    ``home`` is where the run is kept for good, if that is not this directory; then this is one process's copy.
    ``signals`` are how its processes speak with one another, by default by files in the directory.

    Example: ``RunDirectory.open(Path("work/runs/digits-resnet8-…")).result()``
    """

    def __init__(self, path: Path, *, home: Storage | None = None, signals: Signals | None = None) -> None:
        self.path, self.home = path, home
        self.signals = signals or FileSignals(path)

    @classmethod
    def of(cls, workspace: Workspace, name: str) -> RunDirectory:
        """Return the run of this name in a workspace, whether it is there or not, with its home if it has one.

        Example: ``RunDirectory.of(Workspace.of(), "digits-resnet8-…").home``
        """
        address = workspace.home
        return cls(workspace.runs / name, home=storage_at(f"{address}/{name}") if address else None)

    def elsewhere(self, path: Path) -> RunDirectory:
        """Return the same run as a process has it whose copy lies in another folder.

        Example: ``run.elsewhere(Path("/var/cache/runs") / run.name)``
        """
        return RunDirectory(path, home=self.home, signals=self.signals)

    @classmethod
    def create(
        cls, parent: Path, config: RunConfig, dataset: DatasetFacts, *, home: Storage | None = None
    ) -> RunDirectory:
        """Return the run's directory, new or as an earlier start left it; ``dataset`` is kept with the config.

        A config that a crash has torn, or that was changed, is written again: the directory's name says that it is
        this one.
        """
        run = cls(parent / run_name(config, dataset.fingerprint), home=home)
        run.remove_leftovers()
        torn = False
        if run.config_file.exists():
            try:
                run.config()
            except UserError as error:
                _log.warning("%s; it is written again", error)
                torn = True
        if torn or not run.config_file.exists():
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            write_json(run.config_file, {"config": to_dict(config), "dataset": plain_record(dataset)})
        return run

    def remove_leftovers(self) -> None:
        """Remove what processes that were killed while they wrote have left: half a file under a temporary name."""
        for file in (
            self.config_file, self.initial_weights_file, self.weights_file, self.result_file, self.error_file,
            self.delivery_file,
        ):  # fmt: skip
            for left in self.path.glob(f".{file.name}.*"):
                left.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open an existing run; UserError if the folder is none."""
        run = cls(path)
        if not run.config_file.is_file():
            raise UserError(f"{path} is no run directory: it has no config.json")
        return run

    @property
    def name(self) -> str:
        """The directory's name, the run's identity."""
        return self.path.name

    @property
    def address(self) -> str:
        """Where the run is, for its user: its home if it has one, else this directory."""
        return self.home.url if self.home else str(self.path)

    @property
    def config_file(self) -> Path:
        """The config and the dataset's name, fingerprint and classes."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        """Append-only metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def delivery_file(self) -> Path:
        """How far the metrics were delivered to MLflow, and to which run there."""
        return self.path / "mlflow.json"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints."""
        return self.path / "checkpoints"

    @property
    def weights_file(self) -> Path:
        """The final weights."""
        return self.path / "weights.safetensors"

    @property
    def initial_weights_file(self) -> Path:
        """The network that the run began with, if it was not a random one; what resumes reads a checkpoint."""
        return self.path / "initial.safetensors"

    @property
    def result_file(self) -> Path:
        """What the finished run came to; its presence says that the run is finished."""
        return self.path / "result.json"

    @property
    def owner_file(self) -> Path:
        """Names the last attempt on this machine that trained this run (`signals.OWNER`)."""
        return self.path / OWNER

    @property
    def profile(self) -> Path:
        """The traces of a profiled run, one for each rank, for chrome://tracing or Perfetto."""
        return self.path / "profile"

    @property
    def error_file(self) -> Path:
        """What ended the last attempt, if it is something that the user can mend."""
        return self.path / ERROR

    def identity(self) -> str:
        """Return the name that the run's recipe, dataset, seed and config give it, however the directory is called."""
        return run_name(self.config(), self.dataset().fingerprint)

    def config(self) -> RunConfig:
        """Read the run's config; UserError if the file is damaged."""
        return read_run_config(self.config_file)[0]

    def dataset(self) -> DatasetFacts:
        """Read what was kept of the dataset; UserError if the file is damaged."""
        return read_run_config(self.config_file)[1]

    def result(self) -> RunResult | None:
        """Return the result of a finished run, else None; UserError if it is damaged."""
        return RunResult.read(self.result_file)

    @contextmanager
    def lease(self, *, following: bool = False) -> Iterator[Callable[[], None]]:
        """Keep other starts of the run out while inside: they would take it from one another; HeldError if one is on.

        Yields what raises UserError if another machine has taken the run over since; it asks seldom. With ``following``
        the home's lease is left to what trains the run elsewhere (`home_lease`), and who follows it has another.

        Example: ``with run.lease(): train_here(run)``
        """
        with LocalStorage(self.path.parent).lease(self._lock) as check:
            if self.home is None:
                yield check
                return
            with _seldom_checked(self.home, _FOLLOWER_LOCK if following else _HOME_LOCK) as check:
                yield check

    @contextmanager
    def home_lease(self) -> Iterator[Callable[[], None]]:
        """Keep others from training the run while inside, as `lease` does; who follows it is no such one.

        Example: ``with run.home_lease() as check: check()``
        """
        assert self.home is not None
        with _seldom_checked(self.home, _HOME_LOCK) as check:
            yield check

    @property
    def _lock(self) -> str:
        return f".{self.name}.lock"

    def state(self) -> tuple[RunState, str | None]:
        """Return the run's state, and what ended or damaged it if that is known.

        Example: ``RunDirectory.open(Path("work/runs/digits-resnet8-…")).state()[0]``
        """
        if LocalStorage(self.path.parent).is_leased(self._lock):
            return "running", None
        try:
            self.config()
            finished = self.result() is not None
        except UserError as error:
            return "damaged", str(error)
        if finished:
            lost = not self.weights_file.is_file() and self.home is None
            return ("damaged", f"{self.weights_file} is lost") if lost else ("finished", None)
        if self.error_file.is_file():
            return "failed", self.error_file.read_text(errors="replace").strip()
        return "interrupted", None

    def check_weights(self, sha256: str) -> None:
        """Raise UserError, saying how to make them again, unless the weights are those of this hash, the result's."""
        try:
            check_weights(self.weights_file, sha256)
        except UserError as error:
            again = f"or remove {self.result_file} and train the same run again: its newest checkpoint finishes it"
            raise UserError(f"{error}, {again}") from None


@contextmanager
def _seldom_checked(home: Storage, name: str) -> Iterator[Callable[[], None]]:
    with home.lease(name) as check:
        asked = time.monotonic()

        def check_seldom() -> None:
            nonlocal asked
            if time.monotonic() - asked > _SECONDS_BETWEEN_CHECKS:
                asked = time.monotonic()
                check()

        yield check_seldom
