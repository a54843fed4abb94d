"""The training job: a recipe on a staged dataset to a finished run, on Ray, in this process or under torchrun."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from resnet_pipeline.adapters.mlflow.runs import Delivery, Tracking
from resnet_pipeline.adapters.ray.aside import leaving_room, tested_aside
from resnet_pipeline.adapters.ray.cluster import Resources, check_workers, ray_cluster
from resnet_pipeline.adapters.ray.driver import Driver, Plan
from resnet_pipeline.adapters.ray.train import worker_group, works_apart
from resnet_pipeline.adapters.ray.versions import check_versions
from resnet_pipeline.config import RunConfig
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.dataset import Dataset, open_dataset, split_of_objects
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.attempt import (
    SECONDS_BETWEEN_POLLS,
    Attempt,
    attended,
    left_to_do,
    prepared,
    record,
    stopped,
    wait_for,
)
from resnet_pipeline.jobs.crew import Crew, found_by_all
from resnet_pipeline.jobs.following import follow
from resnet_pipeline.jobs.initial_weights import InitialNetwork
from resnet_pipeline.jobs.launch import Launch, check_validated_aside, processes
from resnet_pipeline.jobs.proposals import Proposals
from resnet_pipeline.jobs.recipes import idle_gpus
from resnet_pipeline.parallel import repeated
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.settings import settings, surroundings, variable
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.base import HeldError
from resnet_pipeline.training.mirror import adopt, send
from resnet_pipeline.training.profile import LEAST_STEPS
from resnet_pipeline.training.result import RunResult
from resnet_pipeline.training.run_directory import RunDirectory, run_name
from resnet_pipeline.training.signals import PROFILE
from resnet_pipeline.training.stopping import stop_on_signals
from resnet_pipeline.training.workers import Workers
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished run: its directory, result, MLflow run and where that is shown; ``reused`` if finished before."""

    run: RunDirectory
    result: RunResult
    mlflow_run: str
    mlflow_page: str
    reused: bool


def train_run(
    workspace: Workspace,
    config: RunConfig,
    dataset_name: str,
    launch: Launch = Launch(),  # noqa: B008 - frozen
    initial: InitialNetwork | None = None,
    proposals: Proposals | None = None,
) -> TrainedRun | None:
    """Train a config on a staged dataset; resume where an earlier start stopped.

    ``initial`` is what a config with ``model.initial_weights`` begins with (`begun_with`); a run that has a checkpoint
    needs none. ``proposals`` are the boxes that a config with ``regions`` is trained on (`proposed`); a run that was
    started before has them.

    Returns None in a process that only helped: with torchrun, rank 0 alone shows, tracks and returns. Raises UserError
    for what the user can mend, StoppedError after Ctrl-C or SIGTERM.

    Example: ``train_run(Workspace.of(), run_config("digits/resnet8"), "digits", Launch(launcher="local"))``
    """
    with found_by_all(launch.launcher):
        if launch.profile and config.steps < LEAST_STEPS:
            raise UserError(f"--profile needs at least {LEAST_STEPS} steps, not {config.steps}")
        if launch.validate_aside:
            check_validated_aside(config, launch)
        mirror = launch.mirror or settings().mirror
        # workers elsewhere have other current folders
        launch = replace(launch, mirror=storage_at(mirror).url if mirror else None)
    tracking = Tracking(workspace)
    with processes(launch) as crew:
        if crew is not None and not crew.leads:
            crew.follow(workspace)
            return None
        dataset = open_dataset(workspace, dataset_name)
        check_splits(dataset, objects=config.head is not None)
        dataset.trained_on(config.train_share)  # now, and not when workers have started
        run = run_of(workspace, config, dataset)
        if run.home:
            adopt(run)
            Delivery.reread(run)
        finished = run.result()
        if finished is not None:
            run.check_weights(finished.weights_sha256)
        reused = finished is not None
        attempt = Attempt(workspace, config, dataset, launch, tracking, initial, proposals)
        if reused:
            run.remove_leftovers()
            if run.home and not run.home.stat(run.result_file.name):  # it was finished before it had a home
                send(run, run.home)
            _log.info("%s: finished before (%s); nothing to train", config.recipe, run.name)
        else:
            apart = crew is None and works_apart(workspace)
            with _alone(run, following=apart) as check_alone:
                if crew is not None:
                    _train_with(crew, attempt)
                elif apart:
                    _train_on_cluster(attempt, run, check_alone)
                else:
                    _train_on_ray(attempt, check_alone)
    result = run.result()
    if result is None:
        raise stopped(run)
    with left_to_do(f"{config.recipe} is trained ({run.path}), but not all of it is recorded"):
        record(attempt, run, result)
        mlflow_run = tracking.run_id(run)
    return TrainedRun(run=run, result=result, mlflow_run=mlflow_run, mlflow_page=tracking.page(run), reused=reused)


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


@contextmanager
def _alone(run: RunDirectory, *, following: bool) -> Iterator[Callable[[], None]]:
    """Keep other starts of the run out while inside: they would take it from one another; UserError if one is there.

    Yields what raises UserError if another machine has taken the run over since.
    """
    with ExitStack() as stack:
        try:
            check = stack.enter_context(run.lease(following=following))
        except HeldError as error:
            raise UserError(f"{run.address} is being trained; wait for that, or stop it ({error})") from None
        yield check


def _train_on_ray(attempt: Attempt, check_alone: Callable[[], None]) -> None:
    """Train with workers of Ray's that this process directs: it has started Ray, or shares a folder with the nodes."""
    launch = attempt.launch
    with ray_cluster() as resources:
        counts = _counts(attempt, resources)
        if surroundings().ray_address:
            _log.info(
                "%s: this process directs the training, which ends with it; if runs are kept in a bucket (%s), the "
                "cluster does, and who starts the same again follows it",
                attempt.config.recipe, variable("runs"),
            )  # fmt: skip
        run = prepared(attempt)
        with (
            attended(attempt, run, counts) as follower,
            stop_on_signals(leave_at_once=True) as stop,
            worker_group(
                attempt.workspace,
                run,
                counts=counts,
                resources=resources,
                max_failures=launch.max_failures,
                beside=1 if launch.validate_aside else 0,
            ) as group,
        ):
            if launch.profile:
                run.signals.put(PROFILE)
            address = attempt.dataset.storage.url
            group.begin(run, address, launch.mirror, aside=launch.validate_aside)
            if launch.validate_aside:
                with tested_aside(run, attempt.workspace, address, resources=resources, cpus=group.cpus) as test:
                    wait_for(group, run, follower, stop, check_alone, test)
            else:
                wait_for(group, run, follower, stop, check_alone)


def _train_on_cluster(attempt: Attempt, run: RunDirectory, check_alone: Callable[[], None]) -> None:
    """Train with workers that a driver on the cluster directs; if it does already, follow that."""
    launch, recipe = attempt.launch, attempt.config.recipe
    with ray_cluster() as resources:
        driver = Driver.of(run.name)
        begun = driver is not None
        if driver is not None:
            plan = driver.plan()
            _log.info("%s: it is trained on the cluster already (%s); following that", recipe, run.address)
            counts = plan.counts if plan else ()
            run.path.mkdir(parents=True, exist_ok=True)
        else:
            counts = _counts(attempt, resources)
            run = prepared(attempt, apart=True)
            assert run.home is not None
            driver = Driver.start(
                Plan(
                    run=run.name,
                    home=run.home.url,
                    root=attempt.workspace.root,
                    dataset=attempt.dataset.storage.url,
                    mirror=launch.mirror,
                    counts=counts,
                    resources=resources,
                    max_failures=launch.max_failures,
                    aside=launch.validate_aside,
                )
            )
        run = RunDirectory(run.path, home=run.home, signals=driver.signals)
        with (
            attended(attempt, run, counts, begun=begun) as follower,
            stop_on_signals(leave_at_once=True) as stop,
        ):
            follow(driver, run, follower, stop, check_alone, profile=launch.profile)
            adopt(run)


def _counts(attempt: Attempt, resources: Resources) -> tuple[int, ...]:
    """Return the numbers of workers that a training may have on a cluster; UserError if it has no room for them."""
    config, launch = attempt.config, attempt.launch
    counts = () if launch.workers is None else Workers.of(launch.workers).counts(config)
    beside = 1 if launch.validate_aside else 0
    if surroundings().ray_address:
        check_versions()
    counts = counts or Workers(1, max(1, resources.gpus - beside)).counts(config)[-1:]
    check_workers(counts[0], resources)
    if beside:
        counts = leaving_room(counts, resources)
    if idle := idle_gpus(config, counts[-1], resources.gpus):
        _log.warning("%s", idle)
    return counts


def _train_with(crew: Crew, attempt: Attempt) -> None:
    """Train in this process and the others of its crew; a thread shows the progress."""
    attempt.config.check_workers(crew.size)
    run = prepared(attempt)
    if attempt.launch.profile:
        run.signals.put(PROFILE)
    with attended(attempt, run, (crew.size,)) as follower, repeated(follower.poll, every=SECONDS_BETWEEN_POLLS):
        crew.train(run, attempt.dataset, attempt.launch.mirror)
