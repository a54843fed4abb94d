"""The training job: a recipe on a staged dataset to a finished run, on Ray, in this process or under torchrun."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from resnet_pipeline.adapters.mlflow.runs import Delivery, MetricsSender, Tracking
from resnet_pipeline.adapters.ray.aside import leaving_room, tested_aside
from resnet_pipeline.adapters.ray.cluster import check_workers, ray_cluster
from resnet_pipeline.adapters.ray.train import WorkerGroup, is_lost, worker_group, works_apart
from resnet_pipeline.adapters.ray.versions import check_versions
from resnet_pipeline.config import RunConfig
from resnet_pipeline.config_io import flattened, to_dict, with_overrides
from resnet_pipeline.data.dataset import Dataset, open_dataset, split_of_objects
from resnet_pipeline.errors import StoppedError, UnavailableError, UserError
from resnet_pipeline.jobs.crew import Crew, alone, found_by_all, joined
from resnet_pipeline.jobs.follower import Follower
from resnet_pipeline.jobs.initial_weights import InitialNetwork
from resnet_pipeline.jobs.provenance import result_tags, start_tags
from resnet_pipeline.jobs.recipes import idle_gpus
from resnet_pipeline.parallel import repeated
from resnet_pipeline.progress import priced, progress
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.settings import settings, surroundings
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.base import HeldError
from resnet_pipeline.training.attempt import Owner
from resnet_pipeline.training.checkpoint import newest_checkpoint
from resnet_pipeline.training.footprint import check_disk, disk_bytes, gigabytes
from resnet_pipeline.training.metrics_log import append_lines
from resnet_pipeline.training.mirror import adopt, fetch_newer, keep, mirror_of, send
from resnet_pipeline.training.profile import LEAST_STEPS
from resnet_pipeline.training.result import RunResult
from resnet_pipeline.training.run_directory import RunDirectory, run_name
from resnet_pipeline.training.signals import ERROR, PROFILE, STOP, FileSignals
from resnet_pipeline.training.stopping import stop_on_signals
from resnet_pipeline.training.workers import Workers
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_SECONDS_BETWEEN_POLLS = 0.1  # of the metrics file
_SECONDS_BETWEEN_QUESTIONS = 0.5  # to an actor that has the metrics
_SECONDS_BETWEEN_SENDINGS = 10.0
_RAY_LOGS = "/tmp/ray/session_latest/logs"


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run: its directory, result, MLflow run and where that is shown; ``reused`` if finished before."""

    run: RunDirectory
    result: RunResult
    mlflow_run: str
    mlflow_page: str
    reused: bool


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a training is started; none of it changes what is trained.

    ``launcher``: ``ray`` starts workers on a cluster, with ``local`` this process trains alone, and with ``torchrun``
    it is one of those that torchrun, or srun, has started. ``workers`` is a number or a range ("1-4": as many as there
    is room for, now and later); None takes every GPU of the cluster, or one worker if it has none, as far as the batch
    divides. ``max_failures`` workers or nodes may die on Ray. ``mirror`` is a folder or ``s3://`` address where
    checkpoints are kept too, and found if this root has none; None takes the environment's RESNET_PIPELINE_MIRROR.
    ``profile`` traces a few steps and names their bottleneck (``training.profile``). ``price`` is what an hour of the
    hardware costs; None is the environment's. With ``validate_aside`` another worker on Ray validates in mid-training
    while the others train on. ``tags`` are for the MLflow run: what has started it (``flows.shell``).
    """

    launcher: Literal["ray", "local", "torchrun"] = "ray"
    workers: int | str | None = None
    max_failures: int = 3
    mirror: str | None = None
    profile: bool = False
    price: float | None = None
    validate_aside: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


def train_run(
    workspace: Workspace,
    config: RunConfig,
    dataset_name: str,
    launch: Launch = Launch(),
    initial: InitialNetwork | None = None,
) -> TrainedRun | None:
    """Train a config on a staged dataset; resume where an earlier start stopped.

    ``initial`` is what a config with ``model.initial_weights`` begins with (`begun_with`); a run that has a checkpoint
    needs none.

    Returns None in a process that only helped: with torchrun, rank 0 alone shows, tracks and returns. Raises UserError
    for what the user can mend, StoppedError after Ctrl-C or SIGTERM.

    Example: ``train_run(Workspace.of(), run_config("digits/resnet8"), "digits", Launch(launcher="local"))``
    """
    with found_by_all(launch.launcher):
        if launch.profile and config.steps < LEAST_STEPS:
            raise UserError(f"--profile needs at least {LEAST_STEPS} steps, not {config.steps}")
        if launch.validate_aside:
            _check_validated_aside(config, launch)
        mirror = launch.mirror or settings().mirror
        # workers elsewhere have other current folders
        launch = replace(launch, mirror=storage_at(mirror).url if mirror else None)
    tracking = Tracking(workspace)
    with _processes(launch) as crew:
        if crew is not None and not crew.leads:
            crew.follow(workspace)
            return None
        dataset = open_dataset(workspace, dataset_name)
        check_splits(dataset, objects=config.detection is not None)
        dataset.trained_on(config.train_share)  # now, and not when workers have started
        run = run_of(workspace, config, dataset)
        if run.home:
            adopt(run)
            Delivery.reread(run)
        finished = run.result()
        if finished is not None:
            run.check_weights(finished.weights_sha256)
        reused = finished is not None
        attempt = _Attempt(workspace, config, dataset, launch, tracking, initial)
        if reused:
            run.remove_leftovers()
            if run.home and not run.home.stat(run.result_file.name):  # it was finished before it had a home
                send(run, run.home)
            _log.info("%s: finished before (%s); nothing to train", config.recipe, run.name)
        else:
            with _alone(run) as check_alone:
                if crew is None:
                    _train_on_ray(attempt, check_alone)
                else:
                    _train_with(crew, attempt)
    result = run.result()
    if result is None:
        raise _stopped(run)
    with left_to_do(f"{config.recipe} is trained ({run.path}), but not all of it is recorded"):
        _record(attempt, run, result)
        mlflow_run = tracking.run_id(run)
    return TrainedRun(run=run, result=result, mlflow_run=mlflow_run, mlflow_page=tracking.page(run), reused=reused)


@contextmanager
def left_to_do(reached: str) -> Iterator[None]:
    """Inside, the error of a service that is away begins with what is ``reached``, and says how the rest is done.

    Example: ``with left_to_do("the network is trained, but not registered"): register_run(workspace, trained)``
    """
    try:
        yield
    except UnavailableError as error:
        raise type(error)(f"{reached}: {error}; then the same command does the rest") from error


def run_config(
    recipe: str, overrides: Mapping[str, Any] | None = None, *, steps: int | None = None, seed: int | None = None
) -> RunConfig:
    """Return a recipe with fields changed, by dotted name; ``steps`` and ``seed`` are short for these two.

    Raises UserError for what is not known, not valid, or given both ways.

    >>> run_config("digits/resnet8", {"optim.lr": 0.05}, steps=60).steps
    60
    """
    if "recipe" in (overrides or {}):
        raise UserError("the field recipe says which recipe the run is of, so it can't be changed; name another recipe")
    short = {name: value for name, value in (("steps", steps), ("seed", seed)) if value is not None}
    twice = next((name for name in short if name in (overrides or {})), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice, as --{twice} and as an override; leave one out")
    return with_overrides(get_recipe(recipe), {**(overrides or {}), **short})


def _check_validated_aside(config: RunConfig, launch: Launch) -> None:
    """Raise UserError if training has to wait for its validations, or has nobody else to leave them to."""
    if launch.launcher != "ray":
        raise UserError(f"--validate-aside needs workers on Ray; leave it out with --launcher {launch.launcher}")
    if config.schedule.kind == "plateau":
        raise UserError(
            f"--validate-aside does not go with {config.recipe}: its learning rate follows the validation errors "
            "(schedule.kind=plateau), so training has to wait for each"
        )


def check_splits(dataset: Dataset, *, objects: bool = False) -> None:
    """Raise UserError for a dataset without training images, or without any to validate on, as every recipe does.

    They must have classes, or, with ``objects``, annotated objects.
    """
    if "train" not in dataset.splits:
        raise UserError(f"dataset {dataset.name!r} has no training images; it is for testing alone")
    if objects:
        for split in ("train", dataset.eval_split):
            split_of_objects(dataset, split)
        return
    if not (dataset.splits["train"].labels >= 0).any():
        raise UserError(
            f"the images of dataset {dataset.name!r} ({dataset.manifest.layout}) have objects and no class of their "
            "own, and this recipe trains a classifier"
        )
    if not (dataset.splits[dataset.eval_split].labels >= 0).any():
        raise UserError(
            f"dataset {dataset.name!r} has no val split, and the classes of its test images are not known; stage it "
            "again with val/<class>/*, or with --holdout N"
        )


def is_finished(workspace: Workspace, config: RunConfig, dataset_name: str) -> bool:
    """Return whether this config was trained to its end on this dataset; False also if there is no dataset yet.

    Example: ``is_finished(Workspace.of(), run_config("digits/resnet8"), "digits")``
    """
    try:
        dataset = open_dataset(workspace, dataset_name)
    except UserError:
        return False
    run = run_of(workspace, config, dataset)
    return run.result() is not None or bool(run.home and run.home.stat(run.result_file.name))


def run_of(workspace: Workspace, config: RunConfig, dataset: Dataset) -> RunDirectory:
    """Return where a config is trained on a dataset, whether it was or not.

    Example: ``run_of(Workspace.of(), run_config("digits/resnet8"), open_dataset(Workspace.of(), "digits")).result()``
    """
    return RunDirectory.of(workspace, run_name(config, dataset.fingerprint))


def _stopped(run: RunDirectory) -> StoppedError:
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


@dataclass(frozen=True)
class _Attempt:
    """What is trained on what, how, and where it is tracked."""

    workspace: Workspace
    config: RunConfig
    dataset: Dataset
    launch: Launch
    tracking: Tracking
    initial: InitialNetwork | None = None

    def tags(self, run: RunDirectory, counts: Sequence[int] = ()) -> dict[str, str]:
        """Return what is known of the run before its first step, and what has started it."""
        return {**start_tags(run, self.dataset, counts), **self.launch.tags}


def _processes(launch: Launch) -> AbstractContextManager[Crew | None]:
    """Return what yields this process's crew, None if Ray starts the processes."""
    if launch.launcher == "ray":
        return nullcontext()
    return joined(launch.workers) if launch.launcher == "torchrun" else alone(launch.workers)


@contextmanager
def _alone(run: RunDirectory) -> Iterator[Callable[[], None]]:
    """Keep other starts of the run out while inside: they would take it from one another; UserError if one is there.

    Yields what raises UserError if another machine has taken the run over since.
    """
    with ExitStack() as stack:
        try:
            check = stack.enter_context(run.lease())
        except HeldError as error:
            raise UserError(f"{run.address} is being trained; wait for that, or stop it ({error})") from None
        yield check


def _train_on_ray(attempt: _Attempt, check_alone: Callable[[], None]) -> None:
    config, launch = attempt.config, attempt.launch
    counts = () if launch.workers is None else Workers.of(launch.workers).counts(config)
    beside = 1 if launch.validate_aside else 0
    with ray_cluster() as resources:
        if surroundings().ray_address:
            check_versions()
        counts = counts or Workers(1, max(1, resources.gpus - beside)).counts(config)[-1:]
        check_workers(counts[0], resources)
        if beside:
            counts = leaving_room(counts, resources)
        if idle := idle_gpus(config, counts[-1], resources.gpus):
            _log.warning("%s", idle)
        run = _prepared(attempt, apart=works_apart(attempt.workspace))
        with (
            _attended(attempt, run, counts) as follower,
            stop_on_signals(leave_at_once=True) as stop,
            worker_group(
                attempt.workspace,
                run,
                counts=counts,
                resources=resources,
                max_failures=launch.max_failures,
                beside=beside,
            ) as group,
        ):
            run = group.attended(run)
            if launch.profile:
                run.signals.put(PROFILE)
            address = attempt.dataset.storage.url
            group.begin(run, address, launch.mirror, aside=launch.validate_aside)
            if launch.validate_aside:
                with tested_aside(run, attempt.workspace, address, resources=resources, cpus=group.cpus) as test:
                    _wait_for(group, run, follower, stop, check_alone, test)
            else:
                _wait_for(group, run, follower, stop, check_alone)
            if not run.signals.shared:
                adopt(run)


def _train_with(crew: Crew, attempt: _Attempt) -> None:
    """Train in this process and the others of its crew; a thread shows the progress."""
    attempt.config.check_workers(crew.size)
    run = _prepared(attempt)
    if attempt.launch.profile:
        run.signals.put(PROFILE)
    with _attended(attempt, run, (crew.size,)) as follower, repeated(follower.poll, every=_SECONDS_BETWEEN_POLLS):
        crew.train(run, attempt.dataset, attempt.launch.mirror)


def _prepared(attempt: _Attempt, *, apart: bool = False) -> RunDirectory:
    """Return the run's directory, without an earlier attempt's requests and with what only its home or mirror had.

    If workers have folders of their own, ``apart``, they themselves bring the checkpoint that they resume from.
    """
    config, launch = attempt.config, attempt.launch
    home = run_of(attempt.workspace, config, attempt.dataset).home
    run = RunDirectory.create(attempt.workspace.runs, config, attempt.dataset.facts, home=home)
    for name in (STOP, ERROR, PROFILE):
        run.signals.remove(name)
    if home:
        home.delete(ERROR)
        keep(run, run.config_file)
    if apart:
        if config.model.initial_weights is not None:
            _keep_initial(attempt.initial, run)
        return run
    check_disk(run.path, disk_bytes(config, classes=len(attempt.dataset.classes)))
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
def _attended(attempt: _Attempt, run: RunDirectory, counts: Sequence[int]) -> Iterator[Follower]:
    """Deliver the run's metrics while inside, and yield what shows how far it is."""
    config, named = attempt.config, " or ".join(map(str, counts))
    # what Ray's workers warn of is in their own logs, and noted in the metrics; others' logs are this process's
    notes = attempt.launch.launcher == "ray"
    disk = disk_bytes(config, classes=len(attempt.dataset.classes))
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


def _wait_for(
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
    told, taken = False, 0
    try:
        while True:
            # first, since it says more than the end of the workers does, and there is no use in waiting for the retries
            if (error := run.signals.get(ERROR)) is not None:
                _keep_error(run, error)
                raise UserError(f"{recipe}: {error}")
            finished = group.finished()
            if lines := run.signals.lines(taken):
                append_lines(run.metrics_file, lines)
                taken += len(lines)
            if finished:
                return
            if stop() and not told:
                if Owner.of(run) == before:
                    raise _stopped(run)
                run.signals.put(STOP)
                told = True
            follower.poll()
            for call in often:
                call()
            time.sleep(_SECONDS_BETWEEN_POLLS if run.signals.shared else _SECONDS_BETWEEN_QUESTIONS)
    except UserError:
        raise
    except Exception as error:
        raise (UnavailableError if is_lost(error) else UserError)(
            f"{recipe}: training failed: {_last_line(error)}; Ray's logs are in {_RAY_LOGS}"
        ) from error


def _keep_error(run: RunDirectory, error: str) -> None:
    """Write what ended the run into its directory, and its home, for `RunDirectory.state`."""
    with suppress(UserError):
        if not run.signals.shared:
            FileSignals(run.path).put(ERROR, error)
        keep(run, run.error_file)


def _record(attempt: _Attempt, run: RunDirectory, result: RunResult) -> None:
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


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
