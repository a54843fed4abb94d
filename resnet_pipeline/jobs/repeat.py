"""The commands that repeat what a report shows, bit by bit on such processors and as many; and names for its runs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from itertools import groupby

from resnet_pipeline.adapters.mlflow.registry import name_of
from resnet_pipeline.config import RunConfig
from resnet_pipeline.config_io import assignment, flat
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.manifest import read_origin
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.initial_weights import InitialWeights
from resnet_pipeline.jobs.proposals import proposer_of
from resnet_pipeline.jobs.register import Registration
from resnet_pipeline.jobs.stage import DIGITS, digits_folder
from resnet_pipeline.recipes import changes_of
from resnet_pipeline.staging.stage import MAX_REFUSED
from resnet_pipeline.training.metrics_log import ResumeEntry, complete_lines, entries_of
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

_PROGRAM = "resnet-pipeline"

Command = tuple[str, str]
"""What a command does, and the command as it is typed in a shell."""


def commands(
    workspace: Workspace, dataset: Dataset, runs: Sequence[RunDirectory], names: Sequence[str], protocols: Sequence[str]
) -> list[Command]:
    """Return the commands that stage the dataset, train the runs and test them; ``names`` are those of the runs."""
    tests = [word for protocol in protocols for word in ("--protocol", protocol)]
    runs_ = [run.name for run in runs]
    ensembles = [
        (f"Average them, {protocol}", typed("ensemble", *runs_, "--dataset", dataset.name, "--protocol", protocol))
        for protocol in protocols
    ]
    return [
        ("Stage the images", _stage(workspace, dataset)),
        *(_train(run, name, dataset.name) for run, name in zip(runs, names, strict=True)),
        *(ensembles if len(runs) > 1 else []),
        ("Test them, and write this page", typed("report", *runs_, "--dataset", dataset.name, *tests)),
    ]


def resuming(workspace: Workspace, config: RunConfig, dataset: str) -> str | None:
    """Return the command that resumes a run of this config; None if there is none, since its recipe is not known.

    Example: ``resuming(Workspace.of(), run_config("digits/resnet8"), "digits")``
    """
    root = [] if workspace.root == Workspace.of().root else ["--root", str(workspace.root)]
    try:
        return training(config, dataset, *root)
    except UserError:
        return None


def training(
    config: RunConfig,
    dataset: str,
    *options: str,
    initial: InitialWeights | None = None,
    proposals: str | None = None,
) -> str:
    """Return the command that trains a config, from ``initial`` and on ``proposals``, a localiser's run, if known.

    Raises UserError if its recipe is not known.

    >>> from resnet_pipeline.jobs.train import run_config
    >>> training(run_config("digits/resnet8", {"optim.lr": 0.2}, seed=1), "digits")
    'resnet-pipeline train digits/resnet8 --dataset digits --seed 1 --set optim.lr=0.2'
    """
    return typed("train", config.recipe, "--dataset", dataset, *_options(config, initial, proposals), *options)


def told_apart(configs: Sequence[RunConfig]) -> list[str]:
    """Return a name for each run: its recipe, and what differs from the other runs of the same recipe.

    >>> from resnet_pipeline.jobs.train import run_config
    >>> told_apart([run_config("digits/resnet8", seed=seed) for seed in (0, 1)])
    ['digits/resnet8 seed=0', 'digits/resnet8 seed=1']
    """
    names = {}
    ordered = sorted(range(len(configs)), key=lambda place: configs[place].recipe)
    for recipe, group in groupby(ordered, key=lambda place: configs[place].recipe):
        fields = {place: flat(configs[place]) for place in group}
        first = next(iter(fields.values()))
        differ = [key for key in first if any(own[key] != first[key] for own in fields.values())]
        differ.sort(key=lambda key: key not in ("steps", "seed"))  # these two first
        for place, own in fields.items():
            names[place] = " ".join([recipe, *(assignment(key, own[key]) for key in differ)])
    return [names[place] for place in range(len(configs))]


def _stage(workspace: Workspace, dataset: Dataset) -> str:
    manifest, origin = dataset.manifest, read_origin(dataset.storage)
    source = origin.path if origin else "SOURCE"
    if source == str(digits_folder(workspace)):
        source = DIGITS
    options: list[str] = []
    if origin and origin.holdout:
        options += ["--holdout", str(origin.holdout)]
    if manifest.resized.max_shorter_side:
        options += ["--max-shorter-side", str(manifest.resized.max_shorter_side)]
    if manifest.max_value:
        options += ["--max-value", str(manifest.max_value)]
    if origin and origin.check_md5 is False:
        options += ["--no-md5"]
    refused = len(manifest.refused) / max(1, len(manifest.refused) + sum(map(len, dataset.splits.values())))
    if refused > MAX_REFUSED:
        options += ["--max-refused", str(math.ceil(100 * refused) / 100)]
    return typed("stage", "--source", source, "--name", dataset.name, *options)


def _train(run: RunDirectory, name: str, dataset: str) -> Command:
    config, result = run.config(), run.result()
    words = [config.recipe, "--dataset", dataset]
    try:
        words += _options(config, InitialWeights.read(run), proposer_of(run))
    except UserError as error:
        return f"Train {name}: {error}", f"# {run.name}"
    title = f"Train {name}"
    if result is not None:
        words += ["--workers", str(result.workers)]
        changed = [str(resumed.workers) for _, resumed in entries_of(complete_lines(run.metrics_file), ResumeEntry)]
        counts = dict.fromkeys([*changed, str(result.workers)])
        if len(counts) > 1:  # more workers add in another order
            title += f" (its workers were {', then '.join(counts)}: the last bits may differ)"
    return title, typed("train", *words, *_registration(run, config.recipe))


def _options(config: RunConfig, initial: InitialWeights | None = None, proposals: str | None = None) -> Iterator[str]:
    """Yield ``--steps``, ``--seed`` and a ``--set`` for every other field that is not the recipe's.

    Weights that a run began with are their reference, if it is known; so are the boxes that it is trained on.
    """
    yield from initial.options() if initial else ()
    yield from ("--proposals", proposals) if proposals else ()
    for key, value in changes_of(config).items():
        if (initial and key == "model.initial_weights") or (proposals and key == "regions.localiser"):
            continue
        yield from (f"--{key}", str(value)) if key in ("steps", "seed") else ("--set", assignment(key, value))


def _registration(run: RunDirectory, recipe: str) -> list[str]:
    """Return how the run was registered: not at all, under its recipe's name (nothing to say), or another one."""
    registration = Registration.of(run)
    if registration is None:
        return ["--no-register"]
    registered = registration.version.split()[0]
    return [] if registered == name_of(recipe) else ["--register", registered]


def typed(*words: str) -> str:
    """Return a command of this program as it is typed in a shell."""
    return shlex.join([_PROGRAM, *words])
