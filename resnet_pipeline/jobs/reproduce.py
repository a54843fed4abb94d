"""The reproduction job: the runs of a table or figure trained, tested, measured and kept; what is finished is reused.

Each run goes through the jobs that `train`, `evaluate`, `ensemble` and `responses` are, so what those made is reused
here, and the other way round. Another process that was started beside this one takes the runs that nobody trains.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resnet_pipeline.adapters.mlflow.descriptions import PARENT
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.config_io import hash_of
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.errors import StoppedError, UserError
from resnet_pipeline.evaluation.ensemble import average
from resnet_pipeline.evaluation.exhibits import EXHIBITS, Exhibit, exhibits_of, network_name
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.transfers import TRANSFERS
from resnet_pipeline.jobs.evaluate import Evaluation, evaluate_models
from resnet_pipeline.jobs.hardware import Hardware, training_seconds
from resnet_pipeline.jobs.initial_weights import InitialWeights, begun_with
from resnet_pipeline.jobs.keep import again, keepable, kept_test
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.recipes import kept_costs
from resnet_pipeline.jobs.register import register_run
from resnet_pipeline.jobs.repeat import typed
from resnet_pipeline.jobs.responses import measure_responses
from resnet_pipeline.jobs.study import Study, StudyRun, beginning, begun, directory_of, is_kept, study_runs
from resnet_pipeline.jobs.train import check_splits, train_run
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.report.kept import KeptEnsemble, keep, kept_run, read_kept
from resnet_pipeline.report.reproduction import Costs
from resnet_pipeline.report.reproduction_page import write_page
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_PLANNED_ON = Hardware(gpus=1, kind="a100")  # for whoever asks what it would take; a CPU's hours say little of a GPU's

RESPONSE_IMAGES = 1000
"""Evenly spaced test images of figure 7, as `responses` has them by default."""


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """What a study came to: its page, and its runs by name, those finished before among ``reused``.

    ``elsewhere`` are recipes that another process trains now.
    """

    page: Path
    runs: tuple[str, ...]
    reused: tuple[str, ...]
    elsewhere: tuple[str, ...]


def kept_folder(workspace: Workspace, output: Path | None) -> Path:
    """Return where a study's results are kept: the folder that was named, else ``reproduction/`` under the root."""
    return output or workspace.root / "reproduction"


def page_of(folder: Path, price: float | None = None) -> Path:
    """Write the page, its tables as Markdown and its figures from what a folder keeps; return the page's path.

    ``price`` is what an hour of the GPU costs that estimates of what was not run are for.

    Example: ``page_of(Path("docs/reproduction"))``
    """
    recipes = {row.recipe for exhibit in EXHIBITS.values() for row in exhibit.rows}
    recipes |= {row.recipe for table in TRANSFERS for row in table.rows if row.recipe and "-loc/" in row.recipe}
    seconds = {recipe: training_seconds(get_recipe(recipe), _PLANNED_ON) for recipe in recipes}
    return write_page(folder, read_kept(folder), Costs(kept_costs(), seconds, str(_PLANNED_ON), price))


def reproduce(
    workspace: Workspace,
    study: Study,
    launch: Launch = Launch(),  # noqa: B008 - frozen
    *,
    registered: bool = True,
    output: Path | None = None,
) -> Reproduced:
    """Train, test and measure what a study needs, and keep it; the same call after an interruption goes on.

    A run that fails does not end the others. Raises UserError at the end if one has, with what ended the first one, and
    StoppedError after Ctrl-C or SIGTERM; what there is by then is kept.

    Example: ``reproduce(Workspace.of(), Study(exhibit="figure1", cifar10="cifar10", scale="small"))``
    """
    wanted = study_runs(study)
    for name, share in dict.fromkeys((run.dataset, run.config.train_share) for run in wanted):
        # before the first hours of training
        dataset = open_dataset(workspace, name)
        check_splits(dataset)
        dataset.trained_on(share)
    folder = kept_folder(workspace, output)
    done: dict[str, bool] = {}
    failed: dict[str, UserError] = {}
    # those that another process trains are tried once more at the end
    free = [run for run in wanted if not _is_running(workspace, begun(workspace, wanted, run, folder))]
    held = [run for run in wanted if run not in free]
    elsewhere = []
    for number, run in enumerate([*free, *held], 1):
        network = network_name(run.config.recipe, run.begun_with)
        named = f"{run.family}/{network} of seed {run.config.seed}"
        if _is_running(workspace, begun(workspace, wanted, run, folder)):
            _log.info("%d/%d  %s: trained by another process now", number, len(wanted), named)
            elsewhere.append(named)
            continue
        _log.info("%d/%d  %s, for %s", number, len(wanted), named, ", ".join(run.exhibits))
        try:
            name, reused = _one(workspace, study, wanted, run, launch, folder, registered=registered)
        except StoppedError:
            page_of(folder, launch.price)
            raise
        except UserError as failure:
            _log.warning("%s: %s", named, failure)
            failed[named] = failure
        else:
            done[name] = reused
    for exhibit in exhibits_of(study.exhibit):
        _ensemble(workspace, exhibit, wanted, folder)
    page = page_of(folder, launch.price)
    if failed:
        first, error = next(iter(failed.items()))
        raise UserError(f"{len(failed)} of {len(wanted)} runs failed, the first of them {first}: {error}")
    return Reproduced(
        page=page,
        runs=tuple(done),
        reused=tuple(name for name, before in done.items() if before),
        elsewhere=tuple(elsewhere),
    )


def _parent_tag(workspace: Workspace, study: Study, dataset: str) -> dict[str, str]:
    """Return the tag that folds a run under the study's in MLflow; none if MLflow is away: training needs it not."""
    try:
        return {PARENT: Tracking(workspace).parent(study.title, dataset)}
    except UserError as error:
        _log.warning("%s; its runs stand by themselves", error)
        return {}


def _is_running(workspace: Workspace, run: StudyRun | None) -> bool:
    if run is None:  # what it begins with is not trained yet
        return False
    directory = directory_of(workspace, run)
    return directory.config_file.is_file() and directory.state()[0] == "running"


def _one(
    workspace: Workspace,
    study: Study,
    wanted: Sequence[StudyRun],
    planned: StudyRun,
    launch: Launch,
    folder: Path,
    *,
    registered: bool,
) -> tuple[str, bool]:
    """Train, test, measure and keep a run; return its name and whether it was finished before."""
    run = begun(workspace, wanted, planned, folder)
    if run is None:
        raise UserError(f"it begins with the weights of {planned.begun_with}, which are not trained yet")
    dataset, directory = open_dataset(workspace, run.dataset), directory_of(workspace, run)
    before = kept_run(folder, directory.name)
    if not directory.config_file.is_file() and is_kept(run, before):
        _log.info("%s: kept from before in %s; nothing to train", run.config.recipe, folder)
        return directory.name, True
    if not directory.result_file.is_file():  # a finished run has its place
        launch = replace(launch, tags={**launch.tags, **_parent_tag(workspace, study, run.dataset)})
    initial = None
    if (origin := beginning(wanted, planned)) and not directory.initial_weights_file.is_file():
        whose = InitialWeights(reference=directory_of(workspace, origin).name, deepened=True)
        _, initial = begun_with(workspace, planned.config, run.dataset, whose)
    try:
        trained = train_run(workspace, run.config, run.dataset, launch, initial)
    finally:
        # what an interrupted or failed run has learned is shown as such
        if directory.config_file.is_file() and not directory.result_file.is_file():
            keep(folder, keepable(workspace, directory, dataset, begun_with=run.begun_with))
    assert trained is not None  # None is for the helpers of torchrun
    path = str(directory.path)
    tests = {
        protocol: evaluate_models(workspace, [path], TestSpec(dataset=run.dataset, protocol=protocol))[0]
        for protocol in run.protocols
    }
    if registered:
        version = register_run(workspace, trained, list(tests.values()))
        _log.info("%s: %s", run.config.recipe, version.describe())
    responses = before.responses if before else None
    if run.responses and responses is None:
        found = measure_responses(workspace, [path], run.dataset, split=None, images=RESPONSE_IMAGES)
        responses = tuple(found[path].tolist())
    keep(folder, again(keepable(workspace, directory, dataset, tests, responses, run.begun_with), before))
    return directory.name, trained.reused


def _ensemble(workspace: Workspace, exhibit: Exhibit, wanted: Sequence[StudyRun], folder: Path) -> None:
    """Test the mean of an exhibit's networks if all of them are finished: Table 5's, and Table 6's residual ones."""
    members = [run for run in wanted if exhibit.name in run.exhibits and _averaged(exhibit, run)]
    directories = [directory_of(workspace, run) for run in members]
    if len(members) < 2 or any(not directory.result_file.is_file() for directory in directories):
        return
    test = TestSpec(dataset=members[0].dataset, protocol=exhibit.protocol)
    evaluations: list[Evaluation] = evaluate_models(workspace, [str(d.path) for d in directories], test)
    names = sorted(directory.name for directory in directories)
    mean = average([evaluation.scores for evaluation in evaluations])
    options = ("--dataset", test.dataset, "--protocol", test.protocol)
    keep(
        folder,
        KeptEnsemble(
            name=f"{exhibit.name}-{hash_of(names)}",
            runs=tuple(names),
            command=typed("ensemble", *names, *options),
            tests=(kept_test(test.protocol, mean),),
        ),
    )


def _averaged(exhibit: Exhibit, run: StudyRun) -> bool:
    if exhibit.kind == "ensemble":
        return True
    return exhibit.name == "table6" and run.config.recipe.startswith("cifar10/resnet") and run.config.seed == 0
