"""MLflow's model registry: a finished network becomes a version; a reference becomes files again."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnet_pipeline import __version__
from resnet_pipeline.adapters.mlflow.client import guarded
from resnet_pipeline.adapters.mlflow.descriptions import PARENT, dataset_input, origin_tags
from resnet_pipeline.adapters.mlflow.ensembles import (
    CLASSIFIER,
    COLUMN,
    MemberVersion,
    ensemble_digest,
    load_members,
    model_folder,
    read_ensemble,
    write_ensemble,
)
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.adapters.mlflow.serving import CLASSES, SERVED
from resnet_pipeline.config import TASKS, TaskName
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.errors import UserError, did_you_mean
from resnet_pipeline.evaluation.trained_model import LOCALISER_FOLDER, MODEL_FILES, Member
from resnet_pipeline.models.weights import check_noted_weights
from resnet_pipeline.training.run_directory import RunDirectory

CANDIDATE, CHAMPION = "candidate", "champion"
"""The alias that each newly registered version takes, and that of the version that ``promote`` let through."""

_TASK = "task"  # the tag of a version that says what it was trained for; a classifier's has none

CARD_FILE = "model_card.md"
_DESCRIPTION_LIMIT = 5000  # MLflow's


@dataclass(frozen=True)
class ModelVersion:
    """A registered version; ``new`` says whether this call made it."""

    name: str
    version: str
    new: bool = False
    run_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """The reference that MLflow and this program take."""
        return f"models:/{self.name}/{self.version}"

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" + (f" @{CANDIDATE}" if self.new else "")

    def describe(self) -> str:
        """Return how it came to be there: registered as NAME version 1 @candidate."""
        return f"{'registered' if self.new else 'already registered'} as {self}"


def name_of(recipe: str) -> str:
    """Return the name under which a recipe's networks are registered if no other is given.

    >>> name_of("digits/resnet8")
    'digits-resnet8'
    """
    return recipe.replace("/", "-")


def register(
    tracking: Tracking,
    run: RunDirectory,
    name: str | None = None,
    *,
    tags: Mapping[str, str],
    example: bytes,
    classifier: MemberVersion | None = None,
    localiser: Path | None = None,
) -> ModelVersion:
    """Register a finished run's weights as a version, alias ``candidate``, of the model ``name``.

    ``name`` None is the recipe's, as ``cifar10-resnet20``. ``example`` is an encoded image, the version's input
    example. It is served as what it was trained for, `task_of_version`; a localiser with the ``classifier`` that names
    classes to it, to which it refers, and an R-CNN with the files of the ``localiser`` whose boxes it moves, from that
    one's folder. The same weights are registered once under a name: a second call finds the version. Raises UserError
    for an unfinished run and for weights that are not those of its result, and TrackingError if MLflow is away.

    Example: ``register(Tracking(Workspace.of()), run, tags=tags, example=example_image(views)).uri``
    """
    result = run.result()
    if result is None:
        raise UserError(f"run {run.name} is not finished; train it to its end before registering it")
    run.check_weights(result.weights_sha256)
    config = run.config()
    name = name or name_of(config.recipe)
    own_tags = {
        "weights_sha256": result.weights_sha256,
        "run": run.name,
        "recipe": config.recipe,
        "steps": str(config.steps),
        "seed": str(config.seed),
        "dataset": run.dataset().name,
        "dataset_fingerprint": run.dataset().fingerprint,
        **({} if config.task == "classification" else {_TASK: config.task}),
        **({} if classifier is None else {CLASSIFIER: classifier.uri}),
    }
    before = _found(tracking, name, own_tags)
    if before:
        return before
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "network"
        _copy_model(run.path, folder)
        if localiser is not None:
            _copy_model(localiser, folder / LOCALISER_FOLDER)
        if classifier is not None:
            (folder / CLASSIFIER).mkdir()
            write_ensemble(folder / CLASSIFIER, [classifier], run.dataset())
        columns: dict[str, list[Any]] = {COLUMN: [example]}
        if config.task == "localisation":
            columns[CLASSES] = [[run.dataset().classes[0]]]  # a localiser may have no classifier that names some
        return _version(tracking, name, folder, tracking.run_id(run), {**own_tags, **tags}, columns)


def register_ensemble(
    tracking: Tracking,
    name: str,
    members: Sequence[MemberVersion],
    dataset: Dataset,
    *,
    tags: Mapping[str, str],
    example: bytes,
) -> ModelVersion:
    """Register an ensemble of registered versions under ``name``, alias ``candidate``, with an MLflow run of its own.

    The same members are registered once. The version refers to its members' versions and holds no weights. Raises
    TrackingError if MLflow is away.
    """
    digest = ensemble_digest(members)
    own_tags = {
        "weights_sha256": digest,
        "members": ", ".join(m.uri for m in members),
        "dataset": dataset.name,
        "dataset_fingerprint": dataset.fingerprint,
    }
    client = tracking.client
    before = _found(tracking, name, own_tags)
    if before:
        return before
    experiment = tracking.experiment(dataset.name)
    created = guarded(lambda: client.create_run(experiment, run_name=name, tags={**origin_tags(), **own_tags}))
    run_id = created.info.run_id
    guarded(lambda: client.log_inputs(run_id, [dataset_input(dataset, "testing")]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "ensemble"
        folder.mkdir()
        write_ensemble(folder, members, dataset.facts)
        version = _version(tracking, name, folder, run_id, {**own_tags, **tags}, {COLUMN: [example]})
    guarded(lambda: client.set_terminated(run_id))
    return version


def record_members(
    tracking: Tracking, version: ModelVersion, members: Sequence[tuple[MemberVersion, Mapping[str, float]]]
) -> None:
    """Give an ensemble's MLflow run a child run for each member, with that member's own metrics; once.

    The members' own training runs stay where they are: a run has one parent, and a network may be in many ensembles.
    """
    client = tracking.client
    experiment = guarded(lambda: client.get_run(version.run_id)).info.experiment_id
    of_this = f"tags.`{PARENT}` = '{version.run_id}'"
    children = {run.data.tags.get("member"): run for run in guarded(lambda: client.search_runs([experiment], of_this))}
    for member, metrics in members:
        child = children.get(member.uri)
        if child is None:
            name = f"{member.recipe.rpartition('/')[2]} · {member.uri.removeprefix('models:/')}"
            tags = {**origin_tags(), PARENT: version.run_id, "member": member.uri, "recipe": member.recipe}
            child = guarded(lambda name=name, tags=tags: client.create_run(experiment, run_name=name, tags=tags))  # type: ignore[misc]
        for key, value in metrics.items():
            if child.data.metrics.get(key) != value:
                guarded(lambda i=child.info.run_id, k=key, v=value: client.log_metric(i, k, v))  # type: ignore[misc]
        guarded(lambda i=child.info.run_id: client.set_terminated(i))  # type: ignore[misc]


def describe(
    tracking: Tracking,
    version: ModelVersion,
    *,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    scores: Mapping[str, Path],
    card: str,
) -> None:
    """Add tags, metrics, score files (protocol id -> file; a tag links to each) and the model card to a version.

    The card is the version's description and a file of its MLflow run. Score files that the version links to already
    are not sent again.
    """
    client = tracking.client
    linked = dict(tags)
    for protocol, file in scores.items():
        key, folder = f"{protocol}_scores", f"scores/{protocol}"
        link = f"runs:/{version.run_id}/{folder}/{file.name}"
        if version.tags.get(key) != link:
            guarded(lambda file=file, folder=folder: client.log_artifact(version.run_id, str(file), folder))  # type: ignore[misc]
            linked[key] = link
    for name, value in metrics.items():
        guarded(lambda name=name, value=value: client.log_metric(version.run_id, name, value))  # type: ignore[misc]
    _tag(tracking, version, linked)
    guarded(lambda: client.log_text(version.run_id, card, CARD_FILE))
    more = f"\n\n… the whole card: runs:/{version.run_id}/{CARD_FILE}\n"
    short = card if len(card) <= _DESCRIPTION_LIMIT else card[: _DESCRIPTION_LIMIT - len(more)] + more
    guarded(lambda: client.update_model_version(version.name, version.version, description=short))


def resolve(tracking: Tracking, reference: str) -> ModelVersion:
    """Return the version that ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``models:/NAME/latest`` names.

    Raises UserError, saying what there is, if it points nowhere, and TrackingError if MLflow is away.

    Example: ``resolve(Tracking(Workspace.of()), "models:/digits-resnet8@candidate").tags``
    """
    found = re.fullmatch(r"models:/([^/@:']+)(?:@([^/@]+)|/(\d+|latest))", reference)
    if not found:
        raise UserError(f"{reference} is no model reference: write models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = found.groups()
    model = _registered(tracking, name, reference)
    if alias:
        number = model.aliases.get(alias)
        if number is None:
            have = ", ".join(f"@{a} (version {v})" for a, v in sorted(model.aliases.items())) or "none"
            raise UserError(f"{reference} points nowhere: {name} has no alias {alias!r}; its aliases: {have}")
    versions = {str(v.version): v for v in guarded(lambda: tracking.client.search_model_versions(f"name = '{name}'"))}
    if number == "latest" and versions:
        number = max(versions, key=int)
    version = versions.get(str(number))
    if version is None:
        have = ", ".join(sorted(versions, key=int)) or "none"
        raise UserError(f"{reference} points nowhere: {name} has no version {number}; its versions: {have}")
    return _as_version(version)


def task_of_version(version: ModelVersion) -> TaskName:
    """Return what a version was trained for.

    Example: ``task_of_version(resolve(Tracking(Workspace.of()), "models:/scenes-maskrcnn-resnet8-c4@candidate"))``
    """
    return _task(version.tags)


def alias_of(tracking: Tracking, name: str, alias: str) -> ModelVersion | None:
    """Return the version of a registered model that has an alias, None if none has.

    Example: ``alias_of(Tracking(Workspace.of()), "digits-resnet8", "champion")``
    """
    number = _registered(tracking, name, f"models:/{name}").aliases.get(alias)
    return resolve(tracking, f"models:/{name}/{number}") if number else None


def set_alias(tracking: Tracking, version: ModelVersion, alias: str, tags: Mapping[str, str]) -> None:
    """Give a version an alias, which another version may lose, and tags that say why."""
    _tag(tracking, version, tags)
    guarded(lambda: tracking.client.set_registered_model_alias(version.name, alias, version.version))


def version_of_weights(tracking: Tracking, weights_sha256: str) -> ModelVersion | None:
    """Return the newest registered network with these weights, None if they were never registered.

    Example: ``version_of_weights(Tracking(Workspace.of()), weights_sha256(network))``
    """
    found = guarded(lambda: tracking.client.search_model_versions(f"tags.weights_sha256 = '{weights_sha256}'"))
    versions = sorted(found, key=lambda v: int(v.creation_timestamp))
    return _as_version(versions[-1]) if versions else None


@dataclass(frozen=True)
class Trained:
    """A registered network's version, and the steps and the seed that it was trained with."""

    version: ModelVersion
    steps: int
    seed: int


def trained_by(tracking: Tracking, recipe: str) -> list[Trained]:
    """Return the registered networks of a recipe, the newest first; TrackingError if MLflow is away."""
    found = guarded(lambda: tracking.client.search_model_versions(f"tags.recipe = '{recipe}'"))
    newest = sorted(found, key=lambda v: int(v.creation_timestamp), reverse=True)
    return [trained for v in newest if (trained := training_of(tracking, _as_version(v)))]


def training_of(tracking: Tracking, version: ModelVersion) -> Trained | None:
    """Return what a version's tags say of its training; those of earlier versions are in its run. None: neither."""
    known = version.tags
    if not {"steps", "seed"} <= known.keys():
        known = guarded(lambda: tracking.client.get_run(version.run_id)).data.params if version.run_id else {}
    try:
        return Trained(version, steps=int(known["steps"]), seed=int(known["seed"]))
    except (LookupError, ValueError):
        return None


def fetch_card(tracking: Tracking, version: ModelVersion) -> str:
    """Return a version's model card.

    Example: ``fetch_card(tracking, resolve(tracking, uri))``
    """
    import mlflow

    _ = tracking.client  # connects, and sets MLflow's own global address
    return str(guarded(lambda: mlflow.artifacts.load_text(f"runs:/{version.run_id}/{CARD_FILE}")))


def fetch_scores(tracking: Tracking, version: ModelVersion, protocol: str, folder: Path) -> Path | None:
    """Download the score file that a version links to for a protocol id; None if it links to none."""
    import mlflow

    link = version.tags.get(f"{protocol}_scores")
    if link is None:
        return None
    _ = tracking.client  # connects, and sets MLflow's own global address
    return Path(guarded(lambda: mlflow.artifacts.download_artifacts(link, dst_path=str(folder))))


@contextmanager
def fetched_model(tracking: Tracking, reference: str) -> Iterator[Path]:
    """Yield a folder with the weights and config of ``models:/name/version``, ``models:/name@alias`` or ``runs:/id``.

    Raises UserError if the reference points nowhere, at an ensemble, or at a model that this program did not
    register.

    Example: ``with fetched_model(tracking, "models:/digits-resnet8/1") as folder: load_folder(folder)``
    """
    with _downloaded(tracking, reference) as folder:
        if not (folder / MODEL_FILES[0]).is_file():
            members = " ".join(m.uri for m in read_ensemble(folder))
            raise UserError(f"{reference} is an ensemble; name its members instead: {members}")
        yield folder


def fetch_members(tracking: Tracking, reference: str) -> list[Member]:
    """Load the network that a reference names, or all members of the ensemble; errors as for ``fetched_model``."""
    with _downloaded(tracking, reference) as folder:
        return load_members(folder, lambda member: _downloaded(tracking, member))


def fetch_classifier(tracking: Tracking, folder: Path) -> list[Member]:
    """Load the classifier that a registered localiser's folder refers to; empty if it refers to none.

    Raises UserError if it can't be had, or has other weights than when the localiser was registered.
    """
    place = folder / CLASSIFIER
    return load_members(place, lambda member: _downloaded(tracking, member)) if place.is_dir() else []


def members_of(tracking: Tracking, reference: str) -> list[str]:
    """Return the members' references of a registered ensemble, none for a network; UserError as for ``resolve``."""
    members = resolve(tracking, reference).tags.get("members")
    return members.split(", ") if members else []


@contextmanager
def _downloaded(tracking: Tracking, reference: str) -> Iterator[Path]:
    """Yield the folder of a registered model or a run's; a network's weights are those that its version names."""
    import mlflow

    source = reference
    expected: str | None = None
    if reference.startswith("models:/"):
        version = resolve(tracking, reference)
        source, expected = version.uri, version.tags.get("weights_sha256")
    elif reference.count("/") == 1:
        source += "/model"
    _ = tracking.client  # connects, and sets MLflow's own global address
    with tempfile.TemporaryDirectory() as temporary:
        downloaded = Path(guarded(lambda: mlflow.artifacts.download_artifacts(source, dst_path=temporary)))
        folder = model_folder(downloaded, reference)
        weights = folder / MODEL_FILES[0]
        if expected and weights.is_file():  # an ensemble's are checked with its list
            try:
                check_noted_weights(weights, expected)
            except UserError as error:
                raise UserError(f"{reference}: {error}") from None
        yield folder


def _copy_model(source: Path, target: Path) -> None:
    target.mkdir()
    for file in MODEL_FILES:
        shutil.copy(source / file, target / file)


def _task(tags: Mapping[str, str]) -> TaskName:
    return next((task for task in TASKS if tags.get(_TASK) == task), "classification")


def _registered(tracking: Tracking, name: str, reference: str) -> Any:
    models = guarded(lambda: tracking.client.search_registered_models(f"name = '{name}'"))
    if models:
        return models[0]
    names = sorted(m.name for m in guarded(lambda: tracking.client.search_registered_models()))
    have = f"registered are {', '.join(names[:20])}" if names else "none is registered"
    near = did_you_mean(name, names)
    raise UserError(f"{reference} points nowhere: no registered model {name!r} at {tracking.address}{near}; {have}")


def _found(tracking: Tracking, name: str, tags: Mapping[str, str]) -> ModelVersion | None:
    """Return the version of the same weights from the same run, with the same classifier if there is one.

    UserError if the name is that of networks and this is an ensemble, or the reverse: the newest version stands for the
    name, so one kind would hide the other.
    """
    versions = guarded(lambda: tracking.client.search_model_versions(f"name = '{name}'"))
    for found in versions:
        if all(found.tags.get(key) == tags.get(key) for key in ("weights_sha256", "run", CLASSIFIER)):
            return _as_version(found)
    others = {_task(found.tags) for found in versions} - {_task(tags)}
    if others:
        raise UserError(
            f"{name!r} is the name of networks for {others.pop()}, and this is one for {_task(tags)}: give it another "
            "with --register"
        )
    if any(("members" in found.tags) != ("members" in tags) for found in versions):
        kinds = ("networks", "an ensemble") if "members" in tags else ("ensembles", "a network")
        raise UserError(f"{name!r} is the name of {kinds[0]}, and this is {kinds[1]}: give it another with --register")
    return None


def _version(
    tracking: Tracking, name: str, folder: Path, run_id: str, tags: Mapping[str, str], example: Mapping[str, list[Any]]
) -> ModelVersion:
    """Log the folder as a new version, alias ``candidate``."""
    number = guarded(lambda: _log_model(tracking, name, folder, run_id, tags, example))
    guarded(lambda: tracking.client.set_registered_model_alias(name, CANDIDATE, number))
    return ModelVersion(name, number, new=True, run_id=run_id, tags=tags)


def _log_model(
    tracking: Tracking, name: str, folder: Path, run_id: str, tags: Mapping[str, str], example: Mapping[str, list[Any]]
) -> str:
    import mlflow
    import pandas

    served = SERVED[_task(tags)]
    with mlflow.start_run(run_id=run_id):
        # MLflow loads the model once more here, to see that it serves the example
        logged = mlflow.pyfunc.log_model(
            name="model",
            loader_module=served.loader_module,
            data_path=str(folder),
            signature=served.signature(),
            input_example=pandas.DataFrame(dict(example)),
            pip_requirements=[f"resnet-pipeline=={__version__}"],
        )
    client = tracking.client
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(
        name, f"models:/{logged.model_id}", run_id=run_id, model_id=logged.model_id, tags=dict(tags)
    )
    return str(version.version)


def _tag(tracking: Tracking, version: ModelVersion, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        if version.tags.get(key) != value:
            guarded(
                lambda key=key, value=value: tracking.client.set_model_version_tag(  # type: ignore[misc]
                    version.name, version.version, key, value
                )
            )


def _as_version(found: Any) -> ModelVersion:
    return ModelVersion(found.name, str(found.version), run_id=found.run_id or "", tags=dict(found.tags))
