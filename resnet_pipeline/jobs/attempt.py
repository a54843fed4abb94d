"""One start of a training, whoever runs its processes: made ready, watched, delivered and recorded."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.adapters.mlflow.sender import MetricsSender
from resnet_pipeline.adapters.ray.train import WorkerGroup, failure, is_lost
from resnet_pipeline.config import RunConfig
from resnet_pipeline.config_io import flattened, to_dict
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.detection import weight_bytes
from resnet_pipeline.errors import StoppedError, UnavailableError, UserError
from resnet_pipeline.jobs.follower import Follower
from resnet_pipeline.jobs.initial_weights import InitialNetwork
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.proposals import Proposals, keep_proposals
from resnet_pipeline.jobs.provenance import result_tags, start_tags
from resnet_pipeline.parallel import repeated
from resnet_pipeline.progress import priced, progress
from resnet_pipeline.training.attempt import Owner
from resnet_pipeline.training.checkpoint import newest_checkpoint
from resnet_pipeline.training.footprint import check_disk, disk_bytes, gigabytes
from resnet_pipeline.training.mirror import fetch_newer, keep, mirror_of
from resnet_pipeline.training.result import RunResult
from resnet_pipeline.training.run_directory import RunDirectory, run_name
from resnet_pipeline.training.signals import ERROR, PROFILE, STOP, FileSignals
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

SECONDS_BETWEEN_POLLS = 0.1  # of the metrics file
_SECONDS_BETWEEN_SENDINGS = 10.0


@dataclass(frozen=True)
class Attempt:
    """What is trained on what, how, and where it is tracked."""

    workspace: Workspace
    config: RunConfig
    dataset: Dataset
    launch: Launch
    tracking: Tracking
    initial: InitialNetwork | None = None
    proposals: Proposals | None = None

    def tags(self, run: RunDirectory, counts: Sequence[int] = ()) -> dict[str, str]:
        """Return what is known of the run before its first step, and what has started it."""
        return {**start_tags(run, self.dataset, counts), **self.launch.tags}


@contextmanager
def left_to_do(reached: str) -> Iterator[None]:
    """Inside, the error of a service that is away begins with what is ``reached``, and says how the rest is done.

    Example: ``with left_to_do("the network is trained, but not registered"): register_run(workspace, trained)``
    """
    try:
        yield
    except UnavailableError as error:
        raise type(error)(f"{reached}: {error}; then the same command does the rest") from error


def stopped(run: RunDirectory) -> StoppedError:
    """Return the error that says that a run was stopped, and how it goes on."""
    return StoppedError(f"{run.config().recipe}: stopped and saved in {run.address}; the same command resumes it")


@contextmanager
def delivering(
    tracking: Tracking, run: RunDirectory, dataset: Dataset, tags: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Deliver the run's metrics while inside, and what is left at the end.

    Its parameters, dataset and ``tags`` go first. The MLflow run says what the end was: FAILED after an error, KILLED
    if the run was stopped. Whoever resumes it marks it as running again.
    """
    sender = MetricsSender(tracking, run, dataset, parameters=flattened(to_dict(run.config())), tags=tags or {})
    status: str | None = "KILLED"
    try:
        yield
        status = None if run.result() else "KILLED"
    except StoppedError:
        raise
    except Exception:
        status = "FAILED"
        raise
    finally:
        sender.close()
        if status:
            with suppress(UserError):
                tracking.finish(run, status)


def prepared(attempt: Attempt, *, apart: bool = False) -> RunDirectory:
    """Return the run's directory, without an earlier attempt's requests and with what only its home or mirror had.

    If workers have folders of their own, ``apart``, they themselves bring the checkpoint that they resume from.
    """
    config, launch = attempt.config, attempt.launch
    home = RunDirectory.of(attempt.workspace, run_name(config, attempt.dataset.fingerprint)).home
    run = RunDirectory.create(attempt.workspace.runs, config, attempt.dataset.facts, home=home)
    for name in (STOP, ERROR, PROFILE):
        run.signals.remove(name)
    if home:
        home.delete(ERROR)
        keep(run, run.config_file)
    if config.regions is not None:
        keep_proposals(attempt.proposals, run, ("train", attempt.dataset.eval_split))
    if apart:
        if config.model.initial_weights is not None:
            _keep_initial(attempt.initial, run)
        return run
    check_disk(run.path, disk_bytes(config, weights=weight_bytes(config, classes=len(attempt.dataset.classes))))
    for storage in filter(None, (home, mirror_of(run, launch.mirror))):
        fetch_newer(run, storage)
    path, _ = newest_checkpoint(run.checkpoints, run=run.identity())  # the attempt warns of damaged ones
    if path:
        _log.info("%s: resuming from %s", config.recipe, path.name)
    elif config.model.initial_weights is not None:
        _keep_initial(attempt.initial, run)
    return run


def _keep_initial(initial: InitialNetwork | None, run: RunDirectory) -> None:
    """Let the run have the network that it begins with; UserError if it is neither given nor there."""
    if initial is not None:
        initial.keep(run)
        keep(run, run.initial_weights_file)
    elif not run.initial_weights_file.is_file():
        raise UserError(
            f"{run.config().recipe}: the weights that it is to begin with are not in {run.path}: "
            "name them with --initial-weights, without the fields model.initial_weights and model.initial_head"
        )


@contextmanager
def attended(attempt: Attempt, run: RunDirectory, counts: Sequence[int], *, begun: bool = False) -> Iterator[Follower]:
    """Deliver the run's metrics while inside, and yield what shows how far it is; ``begun``: workers train already."""
    config, named = attempt.config, " or ".join(map(str, counts))
    # what Ray's workers warn of is in their own logs, and noted in the metrics; others' logs are this process's
    notes = attempt.launch.launcher == "ray"
    disk = disk_bytes(config, weights=weight_bytes(config, classes=len(attempt.dataset.classes)))
    if not begun:
        _log.info(
            "%s: starting %s worker(s) for %d steps of %d images; up to %s on the disk",
            config.recipe, named, config.steps, config.batch, gigabytes(disk),
        )  # fmt: skip
    with (
        delivering(attempt.tracking, run, attempt.dataset, attempt.tags(run, counts)),
        _delivery_kept(run),
        priced(attempt.launch.price),
        progress(config.recipe, total=config.steps, unit="steps", images_per_unit=config.batch) as bar,
    ):
        follower = Follower(run, config, bar, notes=notes)
        try:
            yield follower
        finally:
            follower.poll()


@contextmanager
def _delivery_kept(run: RunDirectory) -> Iterator[None]:
    """Inside, what is known of the run's MLflow run goes to its home, so that whoever resumes the run finds it."""
    sent = b""

    def send_changed() -> None:
        nonlocal sent
        with suppress(UserError, OSError):  # the next time may do
            if (now := run.delivery_file.read_bytes()) != sent:
                keep(run, run.delivery_file)
                sent = now

    if run.home is None:
        yield
        return
    try:
        with repeated(send_changed, every=_SECONDS_BETWEEN_SENDINGS):
            yield
    finally:
        send_changed()


def wait_for(
    group: WorkerGroup,
    run: RunDirectory,
    follower: Follower,
    stop: Callable[[], bool],
    *often: Callable[[], None],
) -> None:
    """Show the training's progress until it has returned, and call ``often``; UserError if the workers have ended.

    UnavailableError if the cluster was lost. StoppedError at once if there was a signal before they have begun: they
    take up to half a minute to start, and have nothing to save.
    """
    recipe, before = run.config().recipe, Owner.of(run)
    told = False
    try:
        while True:
            # first, since it says more than the end of the workers does, and there is no use in waiting for the retries
            if (error := run.signals.get(ERROR)) is not None:
                keep_error(run, error)
                raise UserError(f"{recipe}: {error}")
            if group.finished():
                return
            if stop() and not told:
                if Owner.of(run) == before:
                    raise stopped(run)
                run.signals.put(STOP)
                told = True
            follower.poll()
            for call in often:
                call()
            time.sleep(SECONDS_BETWEEN_POLLS)
    except UserError:
        raise
    except Exception as error:
        raise (UnavailableError if is_lost(error) else UserError)(f"{recipe}: {failure(error)}") from error


def keep_error(run: RunDirectory, error: str) -> None:
    """Write what ended the run into its directory, and its home, for `RunDirectory.state`.

    Example: ``keep_error(run, "the loss is not finite")``
    """
    with suppress(UserError):
        if not run.signals.shared:
            FileSignals(run.path).put(ERROR, error)
        keep(run, run.error_file)


def record(attempt: Attempt, run: RunDirectory, result: RunResult) -> None:
    """Bring a finished run to MLflow, once: its metrics, parameters, files and tags."""
    tracking = attempt.tracking
    tracking.deliver(run)
    marker = run.path / "recorded"
    if marker.exists() and marker.read_text() == tracking.run_id(run):
        return
    tags = {**attempt.tags(run), **result_tags(result)}
    tracking.describe(run, flattened(to_dict(attempt.config)), tags, attempt.dataset)
    totals = {"train/total/seconds": result.seconds, "train/total/images_per_second": result.images_per_second}
    tracking.log_values(run, totals, step=result.steps)
    if run.home:
        fetch_newer(run, run.home, history=False)
    newest, _ = newest_checkpoint(run.checkpoints)
    for file, folder in ((run.config_file, "run"), (run.result_file, "run"), (run.metrics_file, "run")):
        tracking.log_file(run, file, folder)
    for file in (newest, newest.with_suffix(".json")) if newest else ():
        tracking.log_file(run, file, "checkpoints")
    tracking.finish(run)
    marker.write_text(tracking.run_id(run))
    keep(run, run.delivery_file, marker)
