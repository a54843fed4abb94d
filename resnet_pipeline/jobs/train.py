"""The training job: a recipe on a staged dataset, on Ray, to a finished run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from resnet_pipeline.adapters.mlflow_tracking import MetricsSender, Tracking
from resnet_pipeline.adapters.ray_train import check_workers, fit, ray_cluster
from resnet_pipeline.config import RunConfig, to_dict
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.errors import StoppedError, UserError
from resnet_pipeline.jobs.progress import TrainingProgress
from resnet_pipeline.jobs.provenance import environment, git_commit
from resnet_pipeline.training.checkpoint import newest_checkpoint
from resnet_pipeline.training.run_directory import RunDirectory, run_name
from resnet_pipeline.workspace import Workspace

Say = Callable[[str], None]

_RAY_LOGS = "/tmp/ray/session_latest/logs"


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run: its directory, result and MLflow run; ``reused`` if it was finished before."""

    run: RunDirectory
    result: dict[str, Any]
    mlflow_run: str
    reused: bool


def train_run(
    workspace: Workspace,
    config: RunConfig,
    dataset_name: str,
    *,
    workers: int | None = None,
    quiet: bool = False,
    say: Say = print,
) -> TrainedRun:
    """Train a config on a staged dataset; go on where an earlier start stopped.

    ``workers`` None takes every GPU of the cluster, or one worker where there is none, as far as the batch divides.
    Raises UserError for what the user can mend, StoppedError after Ctrl-C.
    """
    dataset = Dataset.open(workspace.dataset(dataset_name))
    tracking = Tracking(workspace)
    run = RunDirectory(workspace.runs / run_name(config, dataset.fingerprint))
    reused = run.result() is not None
    if reused:
        say(f"{config.recipe}: finished before ({run.name}); nothing to train")
    else:
        _train(workspace, config, dataset, workers, tracking, quiet=quiet, say=say)
    result = run.result()
    if result is None:
        raise StoppedError(f"{config.recipe}: stopped and saved in {run.path}; the same command goes on from there")
    _record(tracking, run, config, dataset, result)
    return TrainedRun(run=run, result=result, mlflow_run=tracking.run_id(run), reused=reused)


def most_workers(config: RunConfig, gpus: int) -> int:
    """Return the largest number of workers up to ``gpus`` (at least one) that divides the step's micro-batches."""
    return max(w for w in range(1, max(1, gpus) + 1) if config.micro_batches % w == 0)


@contextmanager
def delivering(tracking: Tracking, run: RunDirectory, say: Say) -> Iterator[None]:
    """Deliver the run's metrics while inside, and what is left at the end; after an error the MLflow run says so."""
    sender = MetricsSender(tracking, run, say=say)
    try:
        yield
    except BaseException as error:
        sender.close()
        with suppress(UserError):
            tracking.finish(run, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    sender.close()


def _train(
    workspace: Workspace,
    config: RunConfig,
    dataset: Dataset,
    workers: int | None,
    tracking: Tracking,
    *,
    quiet: bool,
    say: Say,
) -> None:
    if workers is not None:
        config.check_workers(workers)
    with ray_cluster() as resources:
        count = workers if workers is not None else most_workers(config, resources.gpus)
        check_workers(count, resources)
        about = {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "classes": list(dataset.classes),
            "class_words": dataset.manifest.get("class_words", {}),
        }
        run = RunDirectory.create(workspace.runs, config, about)
        run.stop_file.unlink(missing_ok=True)
        run.error_file.unlink(missing_ok=True)
        path, problems = newest_checkpoint(run.checkpoints)
        for problem in problems:
            say(problem)
        if path:
            say(f"{config.recipe}: going on from {path.name}")
        progress = TrainingProgress(run, config, quiet=quiet, say=say)
        say(f"{config.recipe}: starting {count} worker(s) for {config.steps} steps of {config.batch} images")
        with delivering(tracking, run, say), _stop_on_interrupt(run, say):
            fitting = _in_thread(lambda: fit(run, dataset.path, workers=count, resources=resources))
            while not fitting.done():
                progress.poll()
                if run.error_file.exists():
                    break  # no use in waiting for the retries
                time.sleep(0.2)
            progress.poll()
            progress.close()
            if run.error_file.exists():
                raise UserError(f"{config.recipe}: {run.error_file.read_text()}")
            error = fitting.exception()
            if error is not None:
                raise UserError(
                    f"{config.recipe}: training failed: {_last_line(error)}; Ray's logs are in {_RAY_LOGS}"
                ) from error


def _in_thread(call: Callable[[], None]) -> Future[None]:
    """Run a call in a daemon thread: in the main one Ray Train would take SIGINT for itself."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            call()
            future.set_result(None)
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="ray-train", daemon=True).start()
    return future


@contextmanager
def _stop_on_interrupt(run: RunDirectory, say: Say) -> Iterator[None]:
    """Inside, the first Ctrl-C asks the workers to save and stop; a second one interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if run.stop_file.exists():
            raise KeyboardInterrupt
        run.stop_file.touch()
        say("\nstopping: saving the state at the next log point (Ctrl-C again to leave at once)")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _record(tracking: Tracking, run: RunDirectory, config: RunConfig, dataset: Dataset, result: dict[str, Any]) -> None:
    tracking.deliver(run)
    marker = run.path / "recorded"
    if marker.exists() and marker.read_text() == tracking.run_id(run):
        return
    tracking.describe(run, _flat(to_dict(config)), _tags(run, dataset, result))
    tracking.log_values(
        run,
        {"training_seconds": result["seconds"], "training_images_per_second": result["images_per_second"]},
        step=result["steps"],
    )
    newest, _ = newest_checkpoint(run.checkpoints)
    for file, folder in ((run.config_file, "run"), (run.result_file, "run"), (run.metrics_file, "run")):
        tracking.log_file(run, file, folder)
    for file in (newest, newest.with_suffix(".json")) if newest else ():
        tracking.log_file(run, file, "checkpoints")
    tracking.finish(run)
    marker.write_text(tracking.run_id(run))


def _tags(run: RunDirectory, dataset: Dataset, result: dict[str, Any]) -> dict[str, str]:
    return {
        "run": run.name,
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
        "weights_sha256": result["weights_sha256"],
        "git_commit": git_commit() or "not a git checkout",
        "device": result["device"],
        "workers": str(result["workers"]),
        **environment(),
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
