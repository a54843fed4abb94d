"""The registration of a finished detector or localiser: a version with its figures, result files and model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from resnet_pipeline.adapters.mlflow.ensembles import MemberVersion
from resnet_pipeline.adapters.mlflow.registry import ModelVersion, describe, register
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.jobs.attempt import left_to_do
from resnet_pipeline.jobs.register import Registration, data_facts, example_image, make_candidate, training_facts
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.report.deviations import deviations_of
from resnet_pipeline.report.model_card import MeasuredLocalisation, MeasuredPrecision, ModelCard
from resnet_pipeline.workspace import Workspace


def register_with_results(
    workspace: Workspace,
    trained: TrainedRun,
    dataset: Dataset,
    *,
    name: str | None,
    figures: Mapping[str, tuple[float, tuple[float, float]]],
    results: Mapping[str, Path],
    card: ModelCard,
    picture: Path,
    classifier: MemberVersion | None = None,
    localiser: Path | None = None,
) -> ModelVersion:
    """Register a finished run as a model version that carries its figures; return the version, there or new.

    ``figures`` are in percent with their intervals, by name. ``results`` are files by their protocols, the first of
    which `promote_by_results` compares by. ``name`` None is the recipe's, ``classifier`` and ``localiser`` as in
    `registry.register`. A run that is registered already gets what is new.
    """
    tracking, run = Tracking(workspace), trained.run
    config, split = run.config(), dataset.eval_split
    tags = {
        "split": split,
        "split_images": str(len(dataset.splits[split])),
        "protocol": next(iter(results)),
        "classes": str(len(dataset.classes)),
    }
    found = {key: f"{value:.3f}" for key, (value, _) in figures.items()}
    found |= {f"{key}_interval": f"{low:.3f} to {high:.3f}" for key, (_, (low, high)) in figures.items()}
    with left_to_do(f"{config.recipe} is trained ({run.path}), but not registered"):
        version = register(
            tracking, run, name, tags=tags, example=example_image(config.views), classifier=classifier,
            localiser=localiser,
        )  # fmt: skip
        describe(
            tracking,
            version,
            tags=found,
            metrics={f"test/{key}": value for key, (value, _) in figures.items()},
            scores=results,
            card=card.markdown(),
        )
        tracking.log_file(run, picture, "pictures")
        known = Registration.of(run)
        if known is None or known.uri != version.uri:  # an earlier call may have come no further than the version
            make_candidate(tracking, version)
    Registration(version=str(version), uri=version.uri).keep(run)
    return version


def card_of(
    trained: TrainedRun,
    dataset: Dataset,
    facts: Mapping[str, str],
    *,
    norm: str,
    precision: tuple[MeasuredPrecision, ...] = (),
    localisation: tuple[MeasuredLocalisation, ...] = (),
) -> ModelCard:
    """Return the card of a detector or localiser; ``facts`` are its own, ``norm`` says what batch norm did."""
    result, config = trained.result, trained.run.config()
    return ModelCard(
        title=f"{config.recipe} on {dataset.name}",
        facts={**facts, "weights (SHA-256)": result.weights_sha256, "run": trained.run.name},
        data=data_facts(dataset),
        training=training_facts(trained, f"; batch norm {norm}"),
        deviations=deviations_of(config),
        task=config.task,
        precision=precision,
        localisation=localisation,
    )


def some_of(classes: list[str]) -> str:
    """Return the first names of classes, for a card.

    >>> some_of(["a", "b"])
    'a, b'
    """
    return ", ".join(classes[:20]) + (", …" if len(classes) > 20 else "")
