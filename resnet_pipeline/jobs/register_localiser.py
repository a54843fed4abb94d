"""The registration of a finished localiser: a version with its localisation errors, result files and model card."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from resnet_pipeline.adapters.mlflow.ensembles import MemberVersion
from resnet_pipeline.adapters.mlflow.registry import ModelVersion, resolve, version_of_weights
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.detection.results import read_results
from resnet_pipeline.detection.trained import localiser_protocol
from resnet_pipeline.jobs.localise import Localisation
from resnet_pipeline.jobs.pictures import pictures_of
from resnet_pipeline.jobs.references import RegisteredModel, load, parse
from resnet_pipeline.jobs.register_results import card_of, register_with_results, some_of
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.report.model_card import MeasuredLocalisation
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


def register_localiser(
    workspace: Workspace,
    trained: TrainedRun,
    tests: Sequence[Localisation],
    *,
    name: str | None = None,
    classifier: str | None = None,
) -> ModelVersion:
    """Register a finished localiser as a model version that carries its errors, with pictures of its boxes.

    ``tests`` are of the dataset's evaluation split, one of them with the true classes on whole images: the gate
    compares by it. ``classifier`` is a MODEL that names classes where a request does not; the version refers to its
    registered version, and has none if it is not registered. ``name`` None is the recipe's. A run that is registered
    already gets what is new.

    Example: ``register_localiser(workspace, trained, [localise(workspace, str(trained.run.path), "ilsvrc2012")]).uri``
    """
    run = trained.run
    config = run.config()
    localisation = config.localisation
    assert localisation is not None  # it is a localiser's
    dataset = open_dataset(workspace, run.dataset().name)
    gated = localiser_protocol(config, "dense")
    tests = sorted(tests, key=lambda test: test.test != gated)
    assert tests[0].test == gated  # as the docstring has it
    facts = {
        "localises": f"{some_of(dataset.classes)}; a box for each class that is named, or is a classifier's",
        "network": f"{config.model.name} with a box for each class on its last map",
        "images": f"whole, shorter sides {', '.join(map(str, config.views.scales))} pixels; the likeliest box of all",
    }
    results = read_results(Path(tests[0].results), dataset, tests[0].split)
    return register_with_results(
        workspace,
        trained,
        dataset,
        name=name,
        figures={
            f"{test.protocol}{'' if test.classes == 'truth' else '_predicted'}_localisation_error": (
                test.error,
                test.interval,
            )
            for test in tests
        },
        results={test.test: Path(test.results) for test in tests},
        card=card_of(
            trained, dataset, facts, norm=localisation.norm, localisation=tuple(measured(test) for test in tests)
        ),
        picture=pictures_of(dataset, results, run.path / "pictures" / f"{gated}.png", of=run.name, least_score=0.0),
        classifier=None if classifier is None else _registered(workspace, classifier),
    )


def measured(test: Localisation) -> MeasuredLocalisation:
    """Return a test as cards have it."""
    return MeasuredLocalisation(
        protocol=test.protocol,
        classes=test.classes,
        split=test.split,
        images=test.images,
        error=test.error,
        interval=test.interval,
    )


def _registered(workspace: Workspace, text: str) -> MemberVersion | None:
    """Return the registered version of a classifier; None, which is logged, if it is not registered."""
    tracking, reference = Tracking(workspace), parse(workspace, text)
    member = load(workspace, reference)
    if isinstance(reference, RegisteredModel):
        version: ModelVersion | None = resolve(tracking, reference.uri)
    else:
        version = version_of_weights(tracking, member.weights_sha256)
    if version is None:
        _log.warning("%s is not registered: the localiser is registered without a classifier of its own", text)
        return None
    return MemberVersion(uri=version.uri, recipe=member.recipe or member.network, weights_sha256=member.weights_sha256)
