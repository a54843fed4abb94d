"""MODEL references: what a text that names a network stands for, decided here alone, and who loads it.

The first of these that fits decides:

1. the name of an ensemble (``ilsvrc2015``): several networks by recipe and seed, for each of which ``expanded`` puts
   the newest version that was registered after all of the recipe's steps;
2. ``torchvision:…`` or ``timm:…``: published weights;
3. ``models:/…``: a registered model; ``runs:/…``: an MLflow run;
4. a folder that exists, as a path, then under runs/: a run directory;
5. ``NETWORK=WEIGHTS-FILE``, cut at the first ``=``: weights trained elsewhere; ``#ema`` at the end: its averaged ones;
6. 32 hexadecimal digits: an MLflow run;
7. ``NAME@ALIAS``, or ``NAME``, whose candidate is meant: a registered model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.adapters.mlflow.registry import CANDIDATE, fetch_members, fetched_model, members_of, trained_by
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.paper import ENSEMBLES, EnsembleMember
from resnet_pipeline.evaluation.published_weights import REFERENCE_SOURCES, load_reference
from resnet_pipeline.evaluation.trained_model import Member, load_file, load_folder
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.mirror import adopt
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

EMA = "#ema"
"""What stands after a weights file whose averaged weights are meant."""


@dataclass(frozen=True)
class RunFolder:
    """A run directory, or any folder that holds a network of this program."""

    text: str
    path: Path


@dataclass(frozen=True)
class RegisteredModel:
    """A network or an ensemble in MLflow's registry; ``uri`` is ``models:/…``."""

    text: str
    uri: str


@dataclass(frozen=True)
class MlflowRun:
    """The model that an MLflow run logged; ``uri`` is ``runs:/…``."""

    text: str
    uri: str


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights trained elsewhere, the name of the network that it is for, and whether its EMA is meant."""

    text: str
    network: str
    path: Path
    ema: bool = False


@dataclass(frozen=True)
class PublishedWeights:
    """Weights of torchvision or timm, by the name that they have there."""

    text: str


Reference = RunFolder | RegisteredModel | MlflowRun | WeightsFile | PublishedWeights
"""What a text stands for; ``text`` is what the user wrote, for messages and as a name."""


def parse(workspace: Workspace, text: str) -> Reference:
    """Return what a text that names one network stands for, in the order that this module gives.

    No file is read and MLflow is not asked: whether the network is there turns out when it is loaded. Raises UserError
    for a text that is none of these, and for the name of an ensemble.

    Example: ``parse(Workspace.of(), "torchvision:resnet50")``
    """
    if text in ENSEMBLES:
        raise UserError(
            f"{text} stands for {len(ENSEMBLES[text])} networks, and one is needed here: {_listed(ENSEMBLES[text])}; "
            f"a registered model of that name is models:/{text}@{CANDIDATE}"
        )
    found = _decided(workspace, text)
    if found is None:
        raise UserError(
            f"no model at {text!r}: name a run directory, a registered NAME or NAME@ALIAS, models:/NAME@ALIAS, "
            "runs:/ID, NETWORK=WEIGHTS-FILE, torchvision:NAME or timm:NAME"
        )
    return found


def parse_registered(workspace: Workspace, text: str) -> RegisteredModel:
    """Return the registered model that a text names; UserError if it names anything else."""
    found = _decided(workspace, text) if text not in ENSEMBLES else None
    if not isinstance(found, RegisteredModel):
        what = f" but the folder {found.path}" if isinstance(found, RunFolder) else ""
        raise UserError(f"{text} is no registered model{what}: write models:/NAME@ALIAS or models:/NAME/VERSION")
    return found


def parse_run(workspace: Workspace, text: str) -> RunFolder:
    """Return the run directory that a text names; UserError if it names anything else.

    Example: ``parse_run(Workspace.of(), "work/runs/digits-resnet8-…").path``
    """
    found = _decided(workspace, text) if text not in ENSEMBLES else None
    if not isinstance(found, RunFolder):
        raise UserError(f"{text} is no run directory: name one by its path, or by its name under {workspace.runs}")
    return found


def expanded(workspace: Workspace, texts: Sequence[str], *, allow_partial: bool = False) -> list[str]:
    """Return the texts with the names of ensembles replaced by their members' registered versions.

    ``allow_partial`` takes a run of fewer steps than its recipe's for a member that has no other. Raises UserError,
    naming them, for members that are not registered, or only after fewer steps.

    Example: ``expanded(Workspace.of(), ["ilsvrc2015"])``
    """
    found: list[str] = []
    for text in texts:
        members = ENSEMBLES.get(text)
        found += [text] if members is None else _versions(workspace, text, members, allow_partial)
    return found


def _versions(workspace: Workspace, name: str, members: Sequence[EnsembleMember], allow_partial: bool) -> list[str]:
    """Return each member's newest version that had all steps; if there is none, and it is allowed, the longest."""
    tracking = Tracking(workspace)
    found: list[str] = []
    missing: list[str] = []
    for member in members:
        steps = get_recipe(member.recipe).steps
        runs = [run for run in trained_by(tracking, member.recipe) if run.seed == member.seed]
        longest = max(runs, key=lambda run: min(run.steps, steps), default=None)  # the first of equals: the newest
        if longest is None:
            missing.append(f"{member} is not registered")
        elif longest.steps < steps and not allow_partial:
            missing.append(f"{member} has only {longest.version.uri}, of {longest.steps:,} of {steps:,} steps")
        else:
            found.append(longest.version.uri)
    if missing:
        raise UserError(
            f"{name} is not complete: {'; '.join(missing)}. Train the runs that are missing, with --seed N, or name "
            "other members; `ensemble --allow-partial` takes runs of fewer steps"
        )
    return found


def _listed(members: Sequence[EnsembleMember]) -> str:
    return ", ".join(map(str, members))


def fully_expanded(workspace: Workspace, texts: Sequence[str]) -> list[str]:
    """Return the texts with the names of ensembles, and registered ensembles, replaced by their members.

    Raises UserError if a text stands for nothing or a registered model is not there.
    """
    found: list[str] = []
    for text in expanded(workspace, texts):
        reference = parse(workspace, text)
        members: Sequence[str] = ()
        if isinstance(reference, RegisteredModel):
            with _naming(reference):
                members = members_of(Tracking(workspace), reference.uri)
        found += members or [text]
    return found


def load(workspace: Workspace, reference: Reference) -> Member:
    """Load the network that a reference stands for; UserError if it points nowhere, or at an ensemble.

    Example: ``load(Workspace.of(), parse(Workspace.of(), "digits-resnet8")).classifier``
    """
    match reference:
        case PublishedWeights():
            return load_reference(reference.text)
        case WeightsFile():
            return load_file(reference.network, reference.path, ema=reference.ema)
        case RunFolder() | RegisteredModel() | MlflowRun():
            with folder_of(workspace, reference) as folder:
                return load_folder(folder)


@contextmanager
def folder_of(workspace: Workspace, reference: Reference) -> Iterator[Path]:
    """Yield the folder of a run, or of a registered model's files; UserError for weights, or if it points nowhere.

    Example: ``with folder_of(Workspace.of(), parse(Workspace.of(), "digits-resnet8")) as folder: load_folder(folder)``
    """
    match reference:
        case RunFolder():
            yield reference.path
        case RegisteredModel() | MlflowRun():
            with _naming(reference), fetched_model(Tracking(workspace), reference.uri) as folder:
                yield folder
        case _:
            raise UserError(f"{reference.text} is a classifier's weights; a run or a registered model is needed here")


def load_all(workspace: Workspace, reference: Reference) -> list[Member]:
    """Load the network that a reference stands for, or all members of a registered ensemble; errors as for ``load``.

    Example: ``load_all(Workspace.of(), parse(Workspace.of(), "my-ensemble"))``
    """
    if isinstance(reference, RegisteredModel | MlflowRun):
        with _naming(reference):
            return fetch_members(Tracking(workspace), reference.uri)
    return [load(workspace, reference)]


def _decided(workspace: Workspace, text: str) -> Reference | None:
    """Return what a text stands for, by the order above from published weights on; None for nothing."""
    if text.startswith(REFERENCE_SOURCES):
        return PublishedWeights(text)
    if text.startswith("models:/"):
        return RegisteredModel(text, text)
    if text.startswith("runs:/"):
        return MlflowRun(text, text)
    if text:  # the empty path is the current folder
        for folder in (Path(text), workspace.runs / text):
            if folder.parent == workspace.runs:
                _bring(RunDirectory.of(workspace, folder.name))
            if folder.is_dir():
                return RunFolder(text, folder)
    network, _, file = text.partition("=")
    if network and file:
        plain = file.removesuffix(EMA)
        return WeightsFile(text, network, Path(plain).expanduser(), ema=plain != file)
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return MlflowRun(text, f"runs:/{text}")
    if re.fullmatch(r"[\w.-]+@[\w.-]+", text):
        return RegisteredModel(text, f"models:/{text}")
    return RegisteredModel(text, f"models:/{text}@{CANDIDATE}") if re.fullmatch(r"[\w.-]+", text) else None


def _bring(run: RunDirectory) -> None:
    """Bring a run from its home, if it is there and its weights are not here."""
    if run.home and not run.weights_file.exists() and run.home.stat(run.config_file.name):
        adopt(run)


@contextmanager
def _naming(reference: RegisteredModel | MlflowRun) -> Iterator[None]:
    """Let an error of MLflow's say what the user wrote, and that no folder of that name was found."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(reference.text):
            raise  # names it already
        short = reference.text != reference.uri
        what = f"{reference.text}: no run directory of that name" if short else reference.text
        raise UserError(f"{what}: {error}") from None
