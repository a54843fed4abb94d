"""imagenet-train, cifar10-train, digits-train: a recipe to a tested, registered model version."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from prefect import flow
from prefect.runtime import flow_run

from flows.artifacts import Links, curves, error_row, even, key_of, table
from flows.evaluate import SECONDS_TO_REGISTER, score
from flows.gpus import reserved
from flows.parameters import (
    DatasetName,
    Deepen,
    Images,
    InitialReference,
    Launcher,
    MaxFailures,
    Mirror,
    Overrides,
    Parameter,
    Price,
    Profile,
    Protocols,
    Registered,
    RegisteredAs,
    Seed,
    Steps,
    ValidateAside,
    Workers,
)
from flows.shell import flow_run_tags, form, logged, outcome, phase
from resnet_pipeline.adapters.mlflow.runs import Delivery, Tracking
from resnet_pipeline.adapters.ray.cluster import dashboard
from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.evaluation.ensemble import Measured
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.jobs.crew import found_by_all
from resnet_pipeline.jobs.evaluate import Evaluation
from resnet_pipeline.jobs.initial_weights import InitialWeights, begun_with
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.proposals import proposed
from resnet_pipeline.jobs.register import Registration, check_network_name, register_run
from resnet_pipeline.jobs.report import curves_of, report_on_training
from resnet_pipeline.jobs.train import TrainedRun, run_config, run_of, train_run
from resnet_pipeline.parallel import repeated
from resnet_pipeline.records import JsonObject, plain
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 2.0

ImageNetNetwork = Literal[
    "plain18", "plain34", "resnet18", "resnet34", "resnet34-b", "resnet34-c", "resnet50", "resnet101", "resnet152"
]
Cifar10Network = Literal[
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202",
    "plain20", "plain32", "plain44", "plain56", "highway20", "highway32", "highway44", "highway56", "highway110",
]  # fmt: skip
DigitsNetwork = Literal["resnet8", "resnet14", "resnet20"]
ImageNetFamily = Annotated[
    Literal[
        "imagenet", "imagenet-fast", "imagenet-short", "imagenet-512", "imagenet-2k", "imagenet-8k", "imagenet-32k"
    ],
    Parameter(
        help="imagenet: as the paper; -fast: 90 epochs as today; -short: 18 epochs (residual networks only); "
        "-512, -2k, -8k, -32k: batches of that size, for 16, 64, 256, 512 GPUs (50 layers and more)."
    ),
]
Cifar10Family = Annotated[
    Literal["cifar10", "cifar10-fast"],
    Parameter(help="cifar10: as the paper; -fast: 30 epochs as today (residual networks only)."),
]


def _named() -> str:
    """Return a flow run's name: network, dataset, seed; the family too if it is not the paper's."""
    given = flow_run.parameters
    family = given.get("family", "")
    network = f"{family}/{given['network']}" if "-" in family else given["network"]
    seeds = (given.get("seed"), (given.get("overrides") or {}).get("seed"), 0)
    return f"{network} · {given['dataset']} · seed {next(seed for seed in seeds if seed is not None)}"


@flow(name="imagenet-train", flow_run_name=_named)
@logged
@form
def imagenet_train(
    dataset: DatasetName,
    network: Annotated[ImageNetNetwork, Parameter(help="A network of Tables 2 and 3.")] = "resnet50",
    family: ImageNetFamily = "imagenet",
    steps: Steps = None,
    workers: Workers = None,
    launcher: Launcher = "ray",
    max_failures: MaxFailures = 3,
    mirror: Mirror = None,
    seed: Seed = None,
    initial_weights: InitialReference = None,
    deepen: Deepen = False,
    overrides: Overrides = None,
    registered: Registered = True,
    registered_as: RegisteredAs = None,
    profile: Profile = False,
    price: Price = None,
    validate_aside: ValidateAside = False,
    protocols: Protocols = ["center", "10-crop"],  # noqa: B006 - Prefect shows it in its form and never changes it
    evaluation_images: Images = None,
) -> JsonObject:
    """Train a network of the paper on ImageNet, by default as the paper did, test it, register it.

    Started again with the same parameters, it resumes.
    """
    config = run_config(f"{family}/{network}", overrides, steps=steps, seed=seed)
    launch = Launch(
        launcher=launcher, workers=workers, max_failures=max_failures, mirror=mirror, profile=profile, price=price,
        validate_aside=validate_aside,
    )  # fmt: skip
    tests = [
        TestSpec(dataset=dataset, protocol=protocol, images=evaluation_images, price=price) for protocol in protocols
    ]
    initial = InitialWeights.of(initial_weights, deepened=deepen)
    return train_test_register(config, dataset, launch, tests, initial, registered=registered, name=registered_as)


@flow(name="cifar10-train", flow_run_name=_named)
@logged
@form
def cifar10_train(
    dataset: DatasetName,
    network: Annotated[Cifar10Network, Parameter(help="A network of Table 6, or its plain twin.")] = "resnet20",
    family: Cifar10Family = "cifar10",
    steps: Steps = None,
    workers: Workers = None,
    launcher: Launcher = "ray",
    max_failures: MaxFailures = 3,
    mirror: Mirror = None,
    seed: Seed = None,
    initial_weights: InitialReference = None,
    deepen: Deepen = False,
    overrides: Overrides = None,
    registered: Registered = True,
    registered_as: RegisteredAs = None,
    profile: Profile = False,
    price: Price = None,
    validate_aside: ValidateAside = False,
    protocols: Protocols = ["center"],  # noqa: B006
    evaluation_images: Images = None,
) -> JsonObject:
    """Train a network of the paper's CIFAR-10 study, test it on single views, register it.

    Started again with the same parameters, it resumes.
    """
    config = run_config(f"{family}/{network}", overrides, steps=steps, seed=seed)
    launch = Launch(
        launcher=launcher, workers=workers, max_failures=max_failures, mirror=mirror, profile=profile, price=price,
        validate_aside=validate_aside,
    )  # fmt: skip
    tests = [
        TestSpec(dataset=dataset, protocol=protocol, images=evaluation_images, price=price) for protocol in protocols
    ]
    initial = InitialWeights.of(initial_weights, deepened=deepen)
    return train_test_register(config, dataset, launch, tests, initial, registered=registered, name=registered_as)


@flow(name="digits-train", flow_run_name=_named)
@logged
@form
def digits_train(
    dataset: DatasetName,
    network: Annotated[DigitsNetwork, Parameter(help="A small network of the CIFAR-10 family.")] = "resnet20",
    steps: Steps = None,
    workers: Workers = None,
    launcher: Launcher = "ray",
    max_failures: MaxFailures = 3,
    mirror: Mirror = None,
    seed: Seed = None,
    initial_weights: InitialReference = None,
    deepen: Deepen = False,
    overrides: Overrides = None,
    registered: Registered = True,
    registered_as: RegisteredAs = None,
    profile: Profile = False,
    price: Price = None,
    validate_aside: ValidateAside = False,
    protocols: Protocols = ["center", "10-crop"],  # noqa: B006
    evaluation_images: Images = None,
) -> JsonObject:
    """Train a small network on the built-in handwritten digits: minutes on a laptop, the same way as ImageNet."""
    config = run_config(f"digits/{network}", overrides, steps=steps, seed=seed)
    launch = Launch(
        launcher=launcher, workers=workers, max_failures=max_failures, mirror=mirror, profile=profile, price=price,
        validate_aside=validate_aside,
    )  # fmt: skip
    tests = [
        TestSpec(dataset=dataset, protocol=protocol, images=evaluation_images, price=price) for protocol in protocols
    ]
    initial = InitialWeights.of(initial_weights, deepened=deepen)
    return train_test_register(config, dataset, launch, tests, initial, registered=registered, name=registered_as)


@phase("train", "train · {config.recipe} · {dataset} · seed {config.seed}")
def train(
    config: RunConfig,
    dataset: str,
    launch: Launch,
    links: Links,
    initial: InitialWeights | None,
    proposals: str | None = None,
) -> TrainedRun | None:
    """Train, from the newest checkpoint if there is one; show where to look as soon as there is something."""
    workspace = Workspace.of()
    with found_by_all(launch.launcher):
        config, network = begun_with(workspace, config, dataset, initial)
        config, boxes = proposed(workspace, config, dataset, proposals)
    run = run_of(workspace, config, open_dataset(workspace, dataset))
    shown: list[dict[str, str | None]] = []

    def show() -> None:
        places = {"MLflow run": Tracking(workspace).page(run), "Ray dashboard": dashboard()}
        if Delivery.of(run).run_id and places not in shown:
            shown.append(places)
            with suppress(Exception):  # it is no concern of the training's, and shown again at the end
                links.show(places)

    with repeated(show, every=_SECONDS_BETWEEN_LOOKS):
        return train_run(workspace, config, dataset, launch, network, boxes)


@phase("register", "register · {trained.run.name}", timeout=SECONDS_TO_REGISTER)
def register(trained: TrainedRun, evaluations: list[Evaluation], name: str | None) -> str:
    """Register the network with its errors."""
    version = register_run(Workspace.of(), trained, evaluations, name=name)
    _log.info("%s: %s", trained.run.config().recipe, version.describe())
    return str(version)


@phase("report", "report · {trained.run.name}", timeout=SECONDS_TO_REGISTER)
def report(trained: TrainedRun, tests: list[TestSpec], evaluations: list[Evaluation]) -> Path:
    """Write the page on the run, and the dataset's with it."""
    page = report_on_training(Workspace.of(), trained, tests, evaluations)
    recipe = trained.run.config().recipe
    _log.info("%s: report %s", recipe, page)
    curves(recipe, curves_of(trained.run))
    return page


def trained_and_tested(
    config: RunConfig,
    dataset: str,
    launch: Launch,
    initial: InitialWeights | None,
    test: Callable[[TrainedRun], T],
    *,
    proposals: str | None = None,
) -> tuple[TrainedRun, T, Links] | None:
    """Return the finished run, what ``test`` says of it, and where to look; the GPUs are taken for both.

    ``proposals`` is the localiser's run on whose boxes an R-CNN is trained. None in the processes that torchrun started
    to help rank 0.
    """
    open_dataset(Workspace.of(), dataset)  # a wrong name is the flow's own error, before there is a task
    links = Links(config.recipe)
    with reserved(config, launch):
        trained = outcome(train(config, dataset, replace(launch, tags=flow_run_tags()), links, initial, proposals))
        return None if trained is None else (trained, test(trained), links)


def show_places(links: Links, trained: TrainedRun, *, registered: bool = False, **others: Path) -> None:
    """Show where MLflow has the finished run and its version, and other files by their names."""
    registration = Registration.of(trained.run) if registered else None
    tracking = Tracking(Workspace.of())
    places = {
        "MLflow run": tracking.page(trained.run),
        "registered version": tracking.page_of_version(registration.uri) if registration else None,
    }
    links.show({**places, **{name: str(file) for name, file in others.items()}})


def train_test_register(
    config: RunConfig,
    dataset: str,
    launch: Launch,
    tests: list[TestSpec],
    initial: InitialWeights | None,
    *,
    registered: bool,
    name: str | None,
) -> JsonObject:
    """Return what the finished run came to; nothing in the processes that torchrun started to help rank 0."""
    check_network_name(name, registered=registered)
    done = trained_and_tested(
        config,
        dataset,
        launch,
        initial,
        lambda trained: [outcome(score([str(trained.run.path)], test))[0] for test in tests],
    )
    if done is None:
        return {}
    trained, evaluations, links = done
    version = outcome(register(trained, evaluations, name)) if registered else None
    page = outcome(report(trained, tests, evaluations))
    errors = {
        test.protocol: {"top1": e.errors.top1, "top5": e.errors.top5, "images": e.errors.images}
        for test, e in zip(tests, evaluations, strict=True)
    }
    rows = [
        error_row(config.recipe, test.protocol, Measured.of(e.scores), recipe=config.recipe)
        for test, e in zip(tests, evaluations, strict=True)
    ]
    table(key_of("errors", config.recipe), even(rows), f"Errors of {config.recipe} on {dataset}, percent")
    show_places(links, trained, registered=registered, report=page)
    return {
        "run": str(trained.run.path),
        "report": str(page),
        "version": version,
        "errors": errors,
        "reused": trained.reused,
        **plain(trained.result),
    }
