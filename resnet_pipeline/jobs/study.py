"""The runs that a table or figure of the paper needs: their configs, what exists of them, and what they cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import dataset_names, open_dataset
from resnet_pipeline.detection import weight_bytes
from resnet_pipeline.errors import UserError, did_you_mean
from resnet_pipeline.evaluation.exhibits import (
    SMALL_SHARE,
    SMALL_STEPS,
    Exhibit,
    Family,
    PaperRow,
    Scale,
    exhibits_of,
    network_name,
)
from resnet_pipeline.jobs.initial_weights import InitialWeights
from resnet_pipeline.jobs.recipes import kept_costs
from resnet_pipeline.jobs.repeat import training
from resnet_pipeline.jobs.train import run_config
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.report.kept import KeptRun, kept_run
from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.training.footprint import disk_bytes
from resnet_pipeline.training.metrics_log import TrainEntry, entries_of, last_step, read_metrics
from resnet_pipeline.training.mirror import adopt
from resnet_pipeline.training.run_directory import RunDirectory, run_name
from resnet_pipeline.workspace import Workspace

_SHORT = 100_000  # iterations below which a plateau's patience is too coarse (docs/DEVIATIONS.md)
_IMAGENET_DROPS = (0.25, 0.5)  # of the budget: 150,000 and 300,000 of 600,000, where the release's curves drop
_CLASSES: dict[Family, int] = {"imagenet": 1000, "cifar10": 10}
_PACES = 20  # log points whose median is a run's pace


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is to be reproduced, on which datasets, how far.

    ``exhibit`` is the name of a table or figure, or ``all``. ``steps``, ``networks``, ``seeds``, ``share`` (of each
    class's training images) and ``overrides`` replace what the scale says; the schedule keeps its proportions.
    """

    exhibit: str
    imagenet: str | None = None
    cifar10: str | None = None
    scale: Scale = "full"
    steps: int | None = None
    networks: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    share: float | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What tells this study from others of the exhibit: its scale, and the steps if they are not the scale's.

        >>> Study(exhibit="table6", scale="small", steps=2000).title
        'table6 · small · 2,000 steps'
        """
        return " · ".join([self.exhibit, self.scale, *([f"{self.steps:,} steps"] if self.steps else [])])

    def dataset(self, family: Family) -> str | None:
        """Return the dataset that stands for the family's; None if none was named."""
        return self.imagenet if family == "imagenet" else self.cifar10


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A run of a study: what is trained on which dataset, for which exhibits, and how it is tested then.

    ``begun_with`` is the network of the study whose weights, deepened, it begins with; its config names them once they
    are trained (`begun`).
    """

    config: RunConfig
    begun_with: str | None = None
    family: Family
    dataset: str
    exhibits: tuple[str, ...]
    protocols: tuple[str, ...]
    responses: bool


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run in one line of a plan.

    ``state`` is the run directory's, ``new``, or ``kept`` for one whose results are there without its directory.
    ``hours`` are those of the steps that are left on this machine, None if nothing was measured here; ``basis`` says
    from which run they are known. ``gigabytes`` is what its directory takes.
    """

    recipe: str
    seed: int
    dataset: str
    exhibits: tuple[str, ...]
    state: str
    step: int
    steps: int
    hours: float | None
    basis: str
    gigabytes: float
    command: str


def study_runs(study: Study) -> list[StudyRun]:
    """Return the runs of a study, each once, in the order of the exhibits.

    Raises UserError for a name that is unknown, and for an exhibit whose dataset was not named; of ``all`` such ones
    are left out, unless no dataset was named at all.

    >>> [run.config.recipe for run in study_runs(Study(exhibit="figure1", cifar10="cifar10"))]
    ['cifar10/plain20', 'cifar10/plain56']
    """
    exhibits = exhibits_of(study.exhibit)
    _check_networks(study, exhibits)
    found: dict[tuple[str, int], StudyRun] = {}
    for exhibit in exhibits:
        networks = [name for name in exhibit.networks(study.scale) if not study.networks]
        if study.networks:  # those of the full list, whatever the scale
            networks = [name for name in exhibit.networks("full") if name in study.networks]
        dataset = study.dataset(exhibit.family)
        if networks and dataset is None:
            if study.exhibit != "all" or not (study.imagenet or study.cifar10):
                raise UserError(f"{exhibit.name} needs a staged dataset: name it with --{exhibit.family} NAME")
            continue
        for network in networks:
            for seed in study.seeds or _seeds(exhibit, network, study.scale):
                run = _run(study, exhibit, exhibit.row(network), seed, str(dataset))
                known = (f"{run.family}/{network}", seed)
                found[known] = _merged(found.get(known), run)
    return list(found.values())


def beginning(runs: Sequence[StudyRun], run: StudyRun) -> StudyRun | None:
    """Return the run of a study whose weights another one begins with; None if it begins with random ones.

    Raises UserError if the study does not train it.
    """
    if run.begun_with is None:
        return None
    for other in runs:
        same = (other.family, other.config.seed, other.begun_with) == (run.family, run.config.seed, None)
        if same and other.config.recipe == f"{run.family}/{run.begun_with}":
            return other
    raise UserError(
        f"{network_name(run.config.recipe, run.begun_with)} begins with the weights of {run.begun_with}: add that to "
        "--networks"
    )


def plan(workspace: Workspace, study: Study, folder: Path) -> list[PlannedRun]:
    """Return a line for each run of a study: its state, and what is left of it to pay; nothing is started.

    ``folder`` keeps results (`reproduce.kept_folder`).

    Example: ``sum(run.gigabytes for run in plan(workspace, Study(exhibit="table6", cifar10="cifar10"), folder))``
    """
    rates, runs = _measured(workspace), study_runs(study)
    return [_planned(workspace, runs, run, rates, folder) for run in runs]


def directory_of(workspace: Workspace, run: StudyRun) -> RunDirectory:
    """Return the directory of a run, there or not; UserError if its dataset is not staged."""
    return RunDirectory.of(workspace, run_name(run.config, open_dataset(workspace, run.dataset).fingerprint))


def begun(workspace: Workspace, runs: Sequence[StudyRun], run: StudyRun, folder: Path) -> StudyRun | None:
    """Return a run of a study with the weights that it begins with in its config; None if they are not trained yet.

    A run that begins with random ones is returned as it is.
    """
    origin = beginning(runs, run)
    if origin is None:
        return run
    directory = directory_of(workspace, origin)
    result = directory.result() if directory.config_file.is_file() else None
    kept = kept_run(folder, directory.name)
    trained = result or (kept.result if kept else None)
    if trained is None:
        return None
    model = replace(run.config.model, initial_weights=trained.weights_sha256, initial_head="kept")
    return replace(run, config=replace(run.config, model=model))


def is_kept(run: StudyRun, kept: KeptRun | None) -> bool:
    """Return whether all that a run is for is kept: it is finished, tested and measured, wherever that was."""
    if kept is None or kept.result is None:
        return False
    tested = all(kept.test(protocol) for protocol in run.protocols)
    return tested and (kept.responses is not None or not run.responses)


def _check_networks(study: Study, exhibits: Sequence[Exhibit]) -> None:
    known = dict.fromkeys(name for exhibit in exhibits for name in exhibit.networks("full"))
    for name in study.networks or ():
        if name not in known:
            near = did_you_mean(name, known) or f"; it has {', '.join(known) or 'none'}"
            raise UserError(f"{study.exhibit} trains no network {name!r}{near}")


def _seeds(exhibit: Exhibit, network: str, scale: Scale) -> tuple[int, ...]:
    seeds = exhibit.seeds(network)
    return seeds if scale == "full" else seeds[:1]


def _run(study: Study, exhibit: Exhibit, row: PaperRow, seed: int, dataset: str) -> StudyRun:
    steps, recipe = study.steps, row.recipe
    if steps is None and study.scale == "small":
        steps = get_recipe(recipe).steps // SMALL_STEPS[exhibit.family]
    return StudyRun(
        config=_config(recipe, steps, seed, {**_share(study, exhibit.family), **study.overrides}),
        begun_with=row.begun_with,
        family=exhibit.family,
        dataset=dataset,
        exhibits=(exhibit.name,),
        protocols=(exhibit.protocol,),
        responses=exhibit.kind == "responses",
    )


def _share(study: Study, family: Family) -> dict[str, float]:
    share = study.share
    if share is None and study.scale == "small":
        share = SMALL_SHARE[family]
    return {} if share in (None, 1) else {"train_share": float(share)}


def _merged(before: StudyRun | None, run: StudyRun) -> StudyRun:
    if before is None:
        return run
    return replace(
        before,
        exhibits=(*before.exhibits, *run.exhibits),
        protocols=tuple(dict.fromkeys((*before.protocols, *run.protocols))),
        responses=before.responses or run.responses,
    )


def _config(recipe: str, steps: int | None, seed: int, overrides: Mapping[str, Any]) -> RunConfig:
    """Return a recipe's config; of a shorter run log points, tests and checkpoints come at shorter intervals, too.

    A short run on ImageNet has fixed drops of the rate, at the release's places in proportion.
    """
    whole = get_recipe(recipe)
    fitted: dict[str, Any] = {}
    if steps is not None and steps != whole.steps:
        for name, parts in (("eval_every", 16), ("checkpoint_every", 16), ("log_every", 64)):
            interval = max(1, steps // parts)
            if interval < getattr(whole, name):
                fitted[name] = interval
        if whole.schedule.kind == "plateau" and steps < _SHORT:
            drops = sorted({round(part * steps) for part in _IMAGENET_DROPS})
            fitted |= {"schedule.kind": "step", "schedule.boundaries": [drop for drop in drops if 0 < drop < steps]}
    return run_config(recipe, {**fitted, **overrides}, steps=steps, seed=seed)


def _planned(
    workspace: Workspace, runs: Sequence[StudyRun], run: StudyRun, rates: Mapping[str, float], folder: Path
) -> PlannedRun:
    config, recipe, initial = run.config, run.config.recipe, None
    staged = run.dataset in dataset_names(workspace)
    if (origin := beginning(runs, run)) and staged:
        initial = InitialWeights(reference=directory_of(workspace, origin).name, deepened=True)
    found = begun(workspace, runs, run, folder) if staged else run
    state, step = _state(workspace, found, folder) if found else (f"new, after {run.begun_with}", 0)
    rate, basis = _rate(recipe, rates)
    left = config.steps - step
    return PlannedRun(
        recipe=f"{run.family}/{network_name(recipe, run.begun_with)}",
        seed=config.seed,
        dataset=run.dataset,
        exhibits=run.exhibits,
        state=state,
        step=step,
        steps=config.steps,
        hours=left * config.batch / rate / 3600 if rate else (None if left else 0.0),
        basis=basis,
        gigabytes=disk_bytes(config, weights=weight_bytes(config, classes=_CLASSES[run.family])) / 1e9,
        command=training(config, run.dataset, initial=initial),
    )


def _state(workspace: Workspace, run: StudyRun, folder: Path) -> tuple[str, int]:
    """Return a run's state and the iteration that it resumes from, or that it has reached while it runs."""
    if run.dataset not in dataset_names(workspace):
        return "new, dataset not staged", 0
    directory = directory_of(workspace, run)
    if not directory.config_file.is_file():
        return ("kept", run.config.steps) if is_kept(run, kept_run(folder, directory.name)) else ("new", 0)
    adopt(directory, weights=False)
    state, _ = directory.state()
    saved = max(checkpoint_steps(directory.checkpoints), default=0)
    return state, {"finished": run.config.steps, "running": last_step(directory.metrics_file)}.get(state, saved)


def _measured(workspace: Workspace) -> dict[str, float]:
    """Return the images per second of each recipe that was trained under this root, the fastest of its runs."""
    found: dict[str, float] = {}
    for file in sorted(workspace.runs.glob("*/config.json")):
        run = RunDirectory(file.parent)
        try:
            result, recipe = run.result(), run.config().recipe
        except UserError:
            continue
        if result is not None:
            rate = result.images_per_second
        else:
            paces = [
                entry.pace.images_per_second for _, entry in entries_of(read_metrics(run.metrics_file), TrainEntry)
            ]
            rate = statistics.median(paces[-_PACES:]) if paces else 0.0
        found[recipe] = max(rate, found.get(recipe, 0.0))
    return {recipe: rate for recipe, rate in found.items() if rate > 0}


def _rate(recipe: str, rates: Mapping[str, float]) -> tuple[float, str]:
    """Return images per second of a recipe and what they are known from: itself, or the one of the nearest cost."""
    if recipe in rates:
        return rates[recipe], f"{recipe}'s {rates[recipe]:,.0f} images/s here"
    costs, family = kept_costs(), recipe.partition("/")[0]
    own = costs[recipe]["multiply_adds"]
    near = [name for name in rates if name.startswith(f"{family}/") and name in costs]
    if not near:
        return 0.0, ""
    kind = recipe.rstrip("0123456789")  # a residual network's pace is another residual one's rather than a plain one's
    nearest = min(near, key=lambda name: (abs(costs[name]["multiply_adds"] - own), not name.startswith(kind), name))
    rate = rates[nearest] * costs[nearest]["multiply_adds"] / own
    return rate, f"{nearest}'s {rates[nearest]:,.0f} images/s here, by multiply-adds"
