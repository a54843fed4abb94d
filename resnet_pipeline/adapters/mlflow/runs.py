"""MLflow's runs: parameters, files, and metrics that are delivered in the background.

Nothing here can stop training: metrics are in the run directory first. A thread delivers them, retries while MLflow is
away, and remembers how far it came. The next start delivers what is left at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from resnet_pipeline.adapters.mlflow.client import connect, guarded, tracking_uri
from resnet_pipeline.adapters.mlflow.descriptions import (
    FLOW_RUN_NAME,
    FLOW_RUN_PAGE,
    dataset_input,
    experiment_of,
    experiments_page,
    origin_tags,
    run_page,
    run_title,
    version_page,
)
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import write_json
from resnet_pipeline.records import RecordError, json_key, load_record, plain_record
from resnet_pipeline.settings import without_secrets
from resnet_pipeline.training.metrics_log import (
    CheckpointEntry,
    Entry,
    Line,
    SystemEntry,
    TrainEntry,
    ValidationEntry,
)
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_NOTE, _NOTE_BEGINS = "mlflow.note.content", "Prefect flow run: "  # a run's description, which a user may write instead
_STUDY = "study"
_BATCH = 900  # MLflow takes 1,000 metrics at once; a line has fewer than 100


class Tracking:
    """A connection to MLflow's tracking server and registry; nothing is contacted before it is needed.

    Example: ``Tracking(Workspace.of()).deliver(run)``
    """

    def __init__(self, workspace: Workspace) -> None:
        self.uri = tracking_uri(workspace)
        self.address = without_secrets(self.uri)
        """What may be shown and kept of if it is."""
        self._artifacts = workspace.mlflow / "artifacts"
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The MlflowClient; TrackingError if MLflow is away."""
        if self._client is None:
            self._client = guarded(lambda: connect(self.uri))
        return self._client

    def experiment(self, dataset: str) -> str:
        """Return the id of the experiment of the runs on a dataset, made on first use."""
        return str(guarded(lambda: self._experiment(experiment_of(dataset))))

    def run_id(self, run: RunDirectory) -> str:
        """Return the MLflow run of a run directory: the one it had at this MLflow, else a new one."""
        known = Delivery.of(run)
        if without_secrets(known.uri) == self.address and known.run_id:
            if known.uri != self.address:  # earlier versions kept the password
                replace(known, uri=self.address).keep(run)
            return known.run_id
        experiment, title = self.experiment(run.dataset().name), run_title(run.config())
        created = guarded(lambda: self.client.create_run(experiment, run_name=title, tags=origin_tags()))
        new = Delivery(uri=self.address, run_id=str(created.info.run_id), experiment_id=experiment)
        new.keep(run)
        return new.run_id

    def parent(self, name: str, dataset: str) -> str:
        """Return the run that stands for several ones on a dataset, as a table of the paper; made on first use.

        A run with the tag `descriptions.PARENT` of its id is folded under it. TrackingError if MLflow is away.

        Example: ``tracking.parent("table6 · small", "cifar10")``
        """
        experiment = self.experiment(dataset)
        found = guarded(lambda: self.client.search_runs([experiment], f"tags.{_STUDY} = '{name}'", max_results=1))
        if found:
            return str(found[0].info.run_id)
        tags = {**origin_tags(), _STUDY: name}
        created = guarded(lambda: self.client.create_run(experiment, run_name=name, tags=tags))
        guarded(lambda: self.client.set_terminated(created.info.run_id))  # it does nothing itself
        return str(created.info.run_id)

    def page(self, run: RunDirectory) -> str:
        """Return the address of the run's page, or how to get there; that of all experiments for runs of old."""
        known = Delivery.of(run)
        if not known.experiment_id:
            return experiments_page(self.uri)
        return run_page(self.uri, known.experiment_id, known.run_id)

    def page_of_dataset(self, dataset: str) -> str:
        """Return the address of all runs on a dataset, or how to get there; TrackingError if MLflow is away."""
        return experiments_page(self.uri, self.experiment(dataset))

    def page_of_version(self, reference: str) -> str:
        """Return the address of ``models:/NAME/VERSION``, or how to get there."""
        name, _, version = reference.removeprefix("models:/").rpartition("/")
        return version_page(self.uri, name, version)

    def describe(
        self, run: RunDirectory, parameters: Mapping[str, Any], tags: Mapping[str, str], dataset: Dataset
    ) -> None:
        """Record the run's parameters, tags and dataset; recording them again changes nothing."""
        from mlflow.entities import Param, RunTag

        run_id = self.run_id(run)
        params = [Param(key, str(value)[:500]) for key, value in parameters.items()]
        all_tags = [RunTag(key, str(value)[:500]) for key, value in {**tags, **self._note(run_id, tags)}.items()]
        guarded(lambda: self.client.log_batch(run_id, params=params, tags=all_tags))
        guarded(lambda: self.client.log_inputs(run_id, [dataset_input(dataset, "training")]))

    def resume(self, run: RunDirectory) -> None:
        """Mark the MLflow run as running: an earlier start may have ended it as failed or killed.

        A run that was fetched from a mirror may have had its MLflow run in a database that is gone with its machine. It
        gets a new one, and all of its metrics.
        """
        run_id = self.run_id(run)
        if not guarded(lambda: _exists(self.client, run_id)):
            _log.info("MLflow at %s has no run %s; %s gets a new one", self.address, run_id, run.name)
            Delivery().keep(run)
            run_id = self.run_id(run)
        guarded(lambda: self.client.update_run(run_id, status="RUNNING"))

    def deliver(self, run: RunDirectory) -> int:
        """Send the metrics that this MLflow has not yet; return how many lines. TrackingError if it is away.

        How far it came is remembered after each batch. Steps that a resumed run computes again are not sent again.
        """
        run_id = self.run_id(run)
        if not run.metrics_file.exists():
            return 0
        before = replace(Delivery.of(run), uri=self.address, run_id=run_id)
        with run.metrics_file.open("rb") as file:
            file.seek(before.delivered)
            data = file.read()
        lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
        read = kept = before.delivered
        steps, batch = dict(before.steps), []
        for number, raw in enumerate(lines, 1):
            line, read = Line.parse(raw), read + len(raw)
            metrics = _metrics(line) if line else []
            if line and metrics and line.step > steps.get(line.entry.kind, -1):
                steps[line.entry.kind] = line.step
                batch += metrics
            if len(batch) > _BATCH or (number == len(lines) and batch):
                guarded(lambda metrics=batch: self.client.log_batch(run_id, metrics=metrics))  # type: ignore[misc]
                batch = []
                kept = read
                replace(before, delivered=kept, steps=steps).keep(run)
        if read != kept:
            replace(before, delivered=read, steps=steps).keep(run)
        return len(lines)

    def log_values(self, run: RunDirectory, values: Mapping[str, float], step: int) -> None:
        """Record final values (errors per protocol, say)."""
        run_id = self.run_id(run)
        for key, value in values.items():
            guarded(lambda key=key, value=value: self.client.log_metric(run_id, key, value, step=step))  # type: ignore[misc]

    def log_file(self, run: RunDirectory, file: Path, folder: str) -> None:
        """Keep a file with the MLflow run."""
        run_id = self.run_id(run)
        guarded(lambda: self.client.log_artifact(run_id, str(file), folder))

    def finish(self, run: RunDirectory, status: str = "FINISHED") -> None:
        """Mark the MLflow run: FINISHED, FAILED or KILLED."""
        run_id = self.run_id(run)
        guarded(lambda: self.client.set_terminated(run_id, status=status))

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(name)
        if not found:
            location = self._artifacts.as_uri() if self.uri.startswith("sqlite:") else None
            try:
                return str(self.client.create_experiment(name, artifact_location=location))
            except MlflowException:  # another training has made it meanwhile
                found = self.client.get_experiment_by_name(name)
                if not found:
                    raise
        if found.lifecycle_stage == "deleted":
            raise UserError(
                f"MLflow's experiment {name!r} was deleted; bring it back: MLFLOW_TRACKING_URI={self.address} "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        return str(found.experiment_id)

    def _note(self, run_id: str, tags: Mapping[str, str]) -> dict[str, str]:
        """Return a description with the link that a tag can't be, to the flow run; nothing over a user's own text."""
        if FLOW_RUN_PAGE not in tags:
            return {}
        before = guarded(lambda: self.client.get_run(run_id)).data.tags.get(_NOTE, "")
        if before and not before.startswith(_NOTE_BEGINS):
            return {}
        return {_NOTE: f"{_NOTE_BEGINS}[{tags[FLOW_RUN_NAME]}]({tags[FLOW_RUN_PAGE]})"}


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How far a run's metrics were delivered, and to which run of which MLflow; kept in the run directory.

    ``delivered`` are bytes of the metrics file, ``steps`` the last delivered step of each kind of line.
    """

    uri: str = ""
    run_id: str = ""
    experiment_id: str = ""
    delivered: int = field(default=0, metadata=json_key("sent"))
    steps: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunDirectory) -> Delivery:
        """Return what the run directory remembers; that nothing was delivered if that is damaged."""
        try:
            kept = load_record(cls, run.delivery_file)
        except (OSError, RecordError):
            return cls()
        return kept if kept.delivered >= 0 else cls()

    @classmethod
    def reread(cls, run: RunDirectory) -> None:
        """Have the run's metrics file read from its start: it is another one than before. What was sent stays known."""
        if run.delivery_file.exists():
            replace(cls.of(run), delivered=0).keep(run)

    def keep(self, run: RunDirectory) -> None:
        """Remember it in the run directory."""
        write_json(run.delivery_file, plain_record(self))


def _exists(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _metrics(line: Line) -> list[Any]:
    from mlflow.entities import Metric

    milliseconds = int(line.time * 1000)
    return [Metric(name, value, milliseconds, line.step) for name, value in _named(line.entry).items()]


def _named(entry: Entry) -> dict[str, float]:
    """Return an entry's numbers under the names that they have in MLflow; nothing of an entry that is no measurement.

    The part before the last slash is a section of MLflow's charts, in which they stand by the alphabet. So the losses
    and errors, which one looks for first, have ``train`` and ``val`` to themselves. A task's own figures keep their
    names.
    """
    match entry:
        case TrainEntry(figures=figures, pace=pace):
            return {
                **{f"train/{name}": value for name, value in figures.items()},
                "train/optim/learning_rate": entry.lr,
                "train/optim/gradient_norm": entry.gradient_norm,
                "train/optim/epoch": entry.epoch,
                "train/pace/images_per_second": pace.images_per_second,
                "train/pace/data_wait": pace.data_wait,
                "train/pace/shard_wait_seconds": entry.shard_wait_seconds,
                "train/pace/step_seconds_p50": pace.step_p50,
                "train/pace/step_seconds_p95": pace.step_p95,
                "train/pace/step_seconds_max": pace.step_max,
            }
        case ValidationEntry(figures=figures):
            names = {"top1": "top1_error", "top5": "top5_error"}
            return {f"val/{names.get(name, name)}": value for name, value in figures.items() if name != "images"}
        case CheckpointEntry(pause=pause, bytes=held):
            return {"train/checkpoint/pause_seconds": pause, "train/checkpoint/bytes": float(held)}
        case SystemEntry(values=values):
            return {f"system/{name}": value for name, value in values.items()}
        case _:
            return {}
