"""The registration of a finished localiser or R-CNN: a version with its errors, result files and model card."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from resnet_pipeline.adapters.mlflow.ensembles import MemberVersion
from resnet_pipeline.adapters.mlflow.registry import ModelVersion, resolve, version_of_weights
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.config import RegionsConfig, RunConfig
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.detection.results import read_results
from resnet_pipeline.jobs.localise import Localisation
from resnet_pipeline.jobs.pictures import pictures_of
from resnet_pipeline.jobs.references import RegisteredModel, folder_of, load, parse
from resnet_pipeline.jobs.register_results import card_of, register_with_results, some_of
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.report.model_card import MeasuredLocalisation
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_GATED = ("dense", "truth")  # protocol and classes of the test that the gate compares by


def register_localiser(
    workspace: Workspace,
    trained: TrainedRun,
    tests: Sequence[Localisation],
    *,
    name: str | None = None,
    classifier: str | None = None,
    proposals: str | None = None,
) -> ModelVersion:
    """Register a finished localiser, or R-CNN, as a model version that carries its errors, with pictures of its boxes.

    ``tests`` are of the dataset's evaluation split, one of them with the true classes on whole images: the gate
    compares by it. ``classifier`` is a MODEL that names classes where a request does not; the version refers to its
    registered version, and has none if it is not registered. ``proposals`` is the localiser whose boxes an R-CNN moves,
    with which the tests were made; the version holds its files, too, so that it gives boxes alone. ``name`` None is the
    recipe's. A run that is registered already gets what is new.

    Example: ``register_localiser(workspace, trained, [localise(workspace, str(trained.run.path), "ilsvrc2012")]).uri``
    """
    run = trained.run
    config = run.config()
    dataset = open_dataset(workspace, run.dataset().name)
    tests = sorted(tests, key=lambda test: (test.protocol, test.classes) != _GATED)
    gated = tests[0]
    assert (gated.protocol, gated.classes) == _GATED  # as the docstring has it
    norm = config.head.norm if config.head else ""
    facts = {
        "localises": f"{some_of(dataset.classes)}; a box for each class that is named, or is a classifier's",
        **(_of_localiser(config) if config.regions is None else _of_regions(config, config.regions)),
    }
    results = read_results(Path(gated.results), dataset, gated.split)
    with _folder(workspace, proposals) as localiser:
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
            card=card_of(trained, dataset, facts, norm=norm, localisation=tuple(measured(test) for test in tests)),
            picture=pictures_of(
                dataset, results, run.path / "pictures" / f"{gated.test}.png", of=run.name, least_score=0.0
            ),
            classifier=None if classifier is None else _registered(workspace, classifier),
            localiser=localiser,
        )


def _of_localiser(config: RunConfig) -> dict[str, str]:
    return {
        "network": f"{config.model.name} with a box for each class on its last map",
        "images": f"whole, shorter sides {', '.join(map(str, config.views.scales))} pixels; the likeliest box of all",
    }


def _of_regions(config: RunConfig, regions: RegionsConfig) -> dict[str, str]:
    return {
        "network": f"{config.model.name} with a score and a box for each class of a region",
        "images": f"regions of {config.augment.crop} pixels, the {regions.proposals} best boxes of its localiser",
        "localiser (SHA-256)": str(regions.localiser),
    }


@contextmanager
def _folder(workspace: Workspace, reference: str | None) -> Iterator[Path | None]:
    """Yield the folder of a model, if one is named."""
    if reference is None:
        yield None
        return
    with folder_of(workspace, parse(workspace, reference)) as folder:
        yield folder


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
