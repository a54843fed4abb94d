"""The registration job: a finished network, or an ensemble of registered ones, as a version with its lineage."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PIL import Image

from resnet_pipeline.adapters.mlflow.ensembles import MemberVersion, ensemble_digest
from resnet_pipeline.adapters.mlflow.registry import (
    CANDIDATE,
    ModelVersion,
    alias_of,
    describe,
    fetch_card,
    record_members,
    register,
    register_ensemble,
    resolve,
    set_alias,
    training_of,
    version_of_weights,
)
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.config import RunConfig, ViewConfig
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import Errors, average, interval_errors
from resnet_pipeline.evaluation.paper import PUBLISHED, PUBLISHED_ENSEMBLE, PublishedError
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.scores import Scores, score_path, write_scores
from resnet_pipeline.files import write_json
from resnet_pipeline.jobs.attempt import left_to_do
from resnet_pipeline.jobs.evaluate import Evaluation
from resnet_pipeline.jobs.provenance import environment, git_commit
from resnet_pipeline.jobs.recipes import network_cost
from resnet_pipeline.jobs.references import RegisteredModel
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.progress import per_second, price_an_hour
from resnet_pipeline.recipes import get_recipe, recipe_names
from resnet_pipeline.records import RecordError, load_record, plain
from resnet_pipeline.report.deviations import deviations_of
from resnet_pipeline.report.model_card import MeasuredErrors, ModelCard, with_errors
from resnet_pipeline.report.terminal import duration, human
from resnet_pipeline.training.mirror import keep
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.usage import Usage
from resnet_pipeline.workspace import Workspace, checked_name


@dataclass(frozen=True, kw_only=True)
class Registration:
    """The version that a run is registered as, kept in its directory: as it is shown, and its address."""

    version: str
    uri: str

    @classmethod
    def of(cls, run: RunDirectory) -> Registration | None:
        """Return what the run directory remembers; None if it is not registered, or that is damaged."""
        try:
            return load_record(cls, run.path / "version.json")
        except (OSError, RecordError):
            return None

    def keep(self, run: RunDirectory) -> None:
        """Remember it in the run directory, and at its home."""
        file = run.path / "version.json"
        write_json(file, plain(self))
        keep(run, file)


def check_network_name(name: str | None, *, registered: bool) -> None:
    """Raise UserError if a network can't be registered under ``name``, or is not to be; None is its recipe's name."""
    if name is None:
        return
    checked_name(name, "model name")
    if not registered:
        raise UserError(f"--register {name} and --no-register contradict each other; leave one out")


def register_run(
    workspace: Workspace,
    trained: TrainedRun,
    evaluations: Sequence[Evaluation] = (),
    *,
    name: str | None = None,
) -> ModelVersion:
    """Register a finished run as a model version that carries its errors per protocol; its MLflow run gets them too.

    ``name`` is the registered model's; None takes the recipe's, as ``cifar10-resnet20``. A run that is registered
    already gets what is new: errors, score files, the model card.

    Example::

        register_run(Workspace.of(), trained, evaluate_models(Workspace.of(), [str(trained.run.path)], test)).uri
    """
    tracking, run, result = Tracking(workspace), trained.run, trained.result
    config = run.config()
    dataset = open_dataset(workspace, run.dataset().name)
    split = dataset.eval_split
    tags = {
        "val_top1_error": f"{result.validation['top1']:.3f}",
        "val_top5_error": f"{result.validation['top5']:.3f}",
        **_about_tests(config.views, dataset, split),
    }
    with left_to_do(f"{config.recipe} is trained ({run.path}), but not registered"):
        version = register(tracking, run, name, tags=tags, example=example_image(config.views))
        tests = {e.path: e.scores for e in evaluations}
        record_tests(tracking, version, tests, card=_network_card(trained, config, dataset).markdown())
        known = Registration.of(run)
        if known is None or known.uri != version.uri:  # an earlier call may have come no further than the version
            make_candidate(tracking, version)
            errors = {f"val/{k}_error": result.validation[k] for k in ("top1", "top5")}
            tracking.log_values(run, errors, step=result.steps)
    Registration(version=str(version), uri=version.uri).keep(run)
    return version


def make_candidate(tracking: Tracking, version: ModelVersion) -> None:
    """Give a version the alias of new ones, unless a newer one has it."""
    candidate = alias_of(tracking, version.name, CANDIDATE)
    if candidate is None or int(candidate.version) < int(version.version):
        set_alias(tracking, version, CANDIDATE, {})


def check_registrable(name: str | None, references: Sequence[str], test: TestSpec | None, *, combine: str) -> None:
    """Raise UserError if the ensemble of these can't be registered under ``name``; None is not to be registered."""
    if name is None:
        return
    checked_name(name, "model name")
    files = [reference for reference in references if reference.endswith(".parquet")]
    if test is None or files:
        raise UserError(f"{files[0] if files else name} can't be registered: name its models, and --dataset")
    if (combine, test.average) != ("probabilities", "softmax"):
        raise UserError(f"{name}: a registered ensemble averages probabilities, as it is served, not logits")


def register_ensemble_of(
    workspace: Workspace, name: str, evaluations: Sequence[Evaluation], test: TestSpec
) -> ModelVersion:
    """Register the ensemble of registered networks under ``name``, with its error from their evaluations' scores.

    The evaluations are those of the ``test``. Returns the version; raises UserError for a member that is not
    registered, or was trained on other classes than the dataset's.

    Example: ``register_ensemble_of(Workspace.of(), "six", evaluate_models(Workspace.of(), names, test), test)``
    """
    checked_name(name, "model name")
    tracking = Tracking(workspace)
    dataset = open_dataset(workspace, test.dataset)
    versions = [_registered(tracking, e) for e in evaluations]
    members = [_as_member(e, version) for e, version in zip(evaluations, versions, strict=True)]
    if any(e.member.classes != tuple(dataset.classes) for e in evaluations):
        raise UserError(f"not all members of {name} were trained on the classes of dataset {test.dataset!r}")
    scores = replace(average([e.scores for e in evaluations]), weights_sha256=ensemble_digest(members))
    views = evaluations[0].member.views
    path = score_path(
        ensemble_scores(workspace),
        dataset_fingerprint=dataset.fingerprint,
        split=scores.split,
        protocol=evaluations[0].path.parent.name,
        weights_sha256=scores.weights_sha256,
    )
    write_scores(scores, path)
    tags = _about_tests(views, dataset, scores.split)
    version = register_ensemble(tracking, name, members, dataset, tags=tags, example=example_image(views))
    partial = [text for v in versions if (text := _partial(tracking, v))]
    card = _ensemble_card(name, members, partial, dataset).markdown()
    record_tests(tracking, version, {path: scores}, card=card)
    alone = [_metrics_of(e.scores.protocol, e.errors) for e in evaluations]
    record_members(tracking, version, list(zip(members, alone, strict=True)))
    return version


def ensemble_scores(workspace: Workspace) -> Path:
    """Return where the scores of registered ensembles are kept: apart, so that no one averages them with networks'."""
    return workspace.scores / "ensembles"


def record_tests(
    tracking: Tracking, version: ModelVersion, tests: Mapping[Path, Scores], *, card: str | None = None
) -> None:
    """Add the errors of score files to a version's tags, metrics and card, and link to the files.

    What the version has of other protocols stays, and so does a test on more images. ``card`` None takes the one that
    the version has.
    """
    of, before = int(version.tags["split_images"]), tested_before(version.tags)
    tests = {p: s for p, s in tests.items() if s.protocol not in before or len(s.keys) >= before[s.protocol].images}
    tested = {s.protocol: measured_errors(s, of) for s in tests.values()}
    everything = {**before, **tested}
    card = card if card is not None else fetch_card(tracking, version)
    describe(
        tracking,
        version,
        tags=error_tags(tested.values()),
        metrics={name: value for t in tested.values() for name, value in _metrics_of(t.protocol, t).items()},
        scores={scores.protocol: path for path, scores in tests.items()},
        card=with_errors(card, list(everything.values())),
    )


def _metrics_of(protocol: str, errors: Errors | MeasuredErrors) -> dict[str, float]:
    """Return errors under the names that they have in MLflow."""
    return {f"test/{protocol}/top1_error": errors.top1, f"test/{protocol}/top5_error": errors.top5}


def measured_errors(scores: Scores, of: int) -> MeasuredErrors:
    """Return the errors of scores with their intervals; ``of`` is the number of the split's images."""
    errors = interval_errors(scores)
    return MeasuredErrors(
        protocol=scores.protocol,
        split=scores.split,
        images=len(scores.keys),
        of=of,
        **vars(errors),
    )


def error_tags(tested: Iterable[MeasuredErrors]) -> dict[str, str]:
    """Return errors, intervals and the number of images as tags of a version."""
    tags = {}
    for found in tested:
        for k, error, (low, high) in (
            ("top1", found.top1, found.top1_interval),
            ("top5", found.top5, found.top5_interval),
        ):
            tags[f"{found.protocol}_{k}_error"] = f"{error:.3f}"
            tags[f"{found.protocol}_{k}_interval"] = f"{low:.3f} to {high:.3f}"
        tags[f"{found.protocol}_images"] = str(found.images)
    return tags


def tested_before(tags: Mapping[str, str]) -> dict[str, MeasuredErrors]:
    """Return what ``error_tags`` wrote, by protocol."""
    found = {}
    for protocol in (key.removesuffix("_images") for key in tags if key.endswith("_images") and key != "split_images"):
        intervals = [tags[f"{protocol}_{k}_interval"].split(" to ") for k in ("top1", "top5")]
        (low1, high1), (low5, high5) = ((float(low), float(high)) for low, high in intervals)
        found[protocol] = MeasuredErrors(
            protocol=protocol,
            split=tags["split"],
            images=int(tags[f"{protocol}_images"]),
            of=int(tags["split_images"]),
            top1=float(tags[f"{protocol}_top1_error"]),
            top1_interval=(low1, high1),
            top5=float(tags[f"{protocol}_top5_error"]),
            top5_interval=(low5, high5),
        )
    return found


def example_image(views: ViewConfig) -> bytes:
    """Return a generated JPEG, two gradients, as an input example: a registry is no place for the dataset's images."""
    side = views.resize
    ramp = Image.linear_gradient("L").resize((side, side))
    image = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _about_tests(views: ViewConfig, dataset: Dataset, split: str) -> dict[str, str]:
    """Return what ``promote`` has to know to find a version's scores and to see whether they are complete."""
    return {
        "classes": str(len(dataset.classes)),
        "views": json.dumps(asdict(views)),
        "split": split,
        "split_images": str(len(dataset.splits[split])),
    }


def _registered(tracking: Tracking, evaluation: Evaluation) -> ModelVersion:
    if isinstance(evaluation.parsed, RegisteredModel):
        version: ModelVersion | None = resolve(tracking, evaluation.parsed.uri)
    else:
        version = version_of_weights(tracking, evaluation.member.weights_sha256)
    if version is None:
        raise UserError(
            f"{evaluation.reference} is not registered, and an ensemble refers to registered versions; "
            "register it first"
        )
    return version


def _as_member(evaluation: Evaluation, version: ModelVersion) -> MemberVersion:
    member = evaluation.member
    return MemberVersion(uri=version.uri, recipe=member.recipe or member.network, weights_sha256=member.weights_sha256)


def _partial(tracking: Tracking, version: ModelVersion) -> str | None:
    """Return a sentence on a version that was trained for fewer steps than its recipe has; None if it was not."""
    recipe, trained = version.tags.get("recipe"), training_of(tracking, version)
    if recipe not in recipe_names() or trained is None:
        return None
    whole = get_recipe(recipe).steps
    return f"{version.uri} was trained for {trained.steps:,} of {whole:,} steps." if trained.steps < whole else None


def _network_card(trained: TrainedRun, config: RunConfig, dataset: Dataset) -> ModelCard:
    result = trained.result
    cost = network_cost(config, classes=len(dataset.classes))
    published = PUBLISHED.get(config.recipe)
    used = Usage.of(trained.run.metrics_file).describe(price_an_hour())
    return ModelCard(
        title=f"{config.recipe} on {dataset.name}",
        facts={
            "network": f"{config.model.name}, {human(cost.parameters)} parameters, "
            f"{human(cost.multiply_adds)} multiply-adds at {config.augment.crop}×{config.augment.crop}",
            "weights (SHA-256)": result.weights_sha256,
            "run": trained.run.name,
            **({"the paper's error": _published(published)} if published else {}),
        },
        data=data_facts(dataset),
        training=training_facts(trained, f", batch norm over {config.micro_batch}", used),
        errors=(),
        deviations=deviations_of(config),
    )


def _ensemble_card(name: str, members: Sequence[MemberVersion], partial: Sequence[str], dataset: Dataset) -> ModelCard:
    ilsvrc = len(dataset.classes) == 1000
    return ModelCard(
        title=f"{name}: an ensemble of {len(members)} on {dataset.name}",
        facts={f"member {i}": f"{m.uri} ({m.recipe})" for i, m in enumerate(members, 1)}
        | ({"the paper's error": f"top-5 {PUBLISHED_ENSEMBLE.top5} %, {PUBLISHED_ENSEMBLE.source}"} if ilsvrc else {}),
        data=data_facts(dataset),
        training={
            "method": "the members' class probabilities are averaged; nothing is trained",
            "made by": made_by(),
        },
        errors=(),
        deviations=[
            "The paper names neither its six models nor their recipes, only that two have 152 layers.",
            *partial,
            "Each member's card has its own.",
        ],
    )


def training_facts(trained: TrainedRun, norm: str, used: str | None = None) -> dict[str, str]:
    """Return what a model card says of a training; ``norm`` ends its line on steps, ``used`` is what it took.

    Example: ``training_facts(trained, "; batch norm trained")``
    """
    result, config = trained.result, trained.run.config()
    return {
        "recipe": config.recipe,
        "steps": f"{result.steps:,} of {config.batch} images{norm}",
        "optimiser": f"SGD, rate {config.optim.lr}, momentum {config.optim.momentum}, weight decay "
        f"{config.optim.weight_decay}; schedule {config.schedule.kind}",
        "seed": str(config.seed),
        "took": f"{duration(result.seconds)} on {result.workers} × {result.device}, "
        f"{per_second(result.images_per_second)} images/s",
        **({"used": used} if used else {}),
        "made by": made_by(),
    }


def data_facts(dataset: Dataset) -> dict[str, str]:
    """Return what a model card says of a dataset."""
    manifest = dataset.manifest
    return {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "images": ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
        + f" of {len(dataset.classes):,} classes; {len(manifest.refused)} refused, "
        f"{len(manifest.converted)} converted when they were staged",
    }


def made_by() -> str:
    """Return what a model card says of the program, its libraries and the commit."""
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    return f"{versions}; commit {git_commit() or 'not known'}"


def _published(found: PublishedError) -> str:
    return f"top-1 {found.top1} %" + ("" if found.top5 is None else f", top-5 {found.top5} %") + f" ({found.source})"
