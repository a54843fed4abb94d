"""imagenet-train, cifar10-train, digits-train: a recipe to a tested, registered model version."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow, task

from flows.parameters import (
    DatasetName,
    Images,
    MaxFailures,
    Mirror,
    Overrides,
    Parameter,
    Profile,
    Protocol,
    Protocols,
    Registered,
    RegisteredAs,
    Seed,
    Steps,
    Workers,
)
from flows.shell import form, logged, say, table
from resnet_pipeline.config import RunConfig
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.jobs.evaluate import Evaluation, evaluate_models
from resnet_pipeline.jobs.register import check_network_name, register_run
from resnet_pipeline.jobs.train import Launch, TrainedRun, run_config, train_run
from resnet_pipeline.workspace import Workspace

ImageNetNetwork = Literal[
    "plain18", "plain34", "resnet18", "resnet34", "resnet34-b", "resnet34-c", "resnet50", "resnet101", "resnet152"
]
Cifar10Network = Literal[
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet1202",
    "plain20", "plain32", "plain44", "plain56", "highway20", "highway32", "highway44", "highway56", "highway110",
]  # fmt: skip
DigitsNetwork = Literal["resnet8", "resnet14", "resnet20"]
ImageNetFamily = Annotated[
    Literal["imagenet", "imagenet-fast", "imagenet-short"],
    Parameter(help="imagenet: as the paper; -fast: 90 epochs as today; -short: 18 epochs (residual networks only)."),
]
Cifar10Family = Annotated[
    Literal["cifar10", "cifar10-fast"],
    Parameter(help="cifar10: as the paper; -fast: 30 epochs as today (residual networks only)."),
]


@flow(name="imagenet-train")
@logged
@form
def imagenet_train(
    dataset: DatasetName,
    network: Annotated[ImageNetNetwork, Parameter(help="A network of Tables 2 and 3.")] = "resnet50",
    family: ImageNetFamily = "imagenet",
    steps: Steps = None,
    workers: Workers = None,
    max_failures: MaxFailures = 3,
    mirror: Mirror = None,
    seed: Seed = None,
    overrides: Overrides = None,
    registered: Registered = True,
    registered_as: RegisteredAs = None,
    profile: Profile = False,
    protocols: Protocols = ["center", "10-crop"],  # noqa: B006 - Prefect shows it in its form and never changes it
    evaluation_images: Images = None,
) -> dict[str, Any]:
    """Train a network of the paper on ImageNet, by default as the paper did, test it, register it.

    Starting it again with the same parameters resumes where it stopped.
    """
    config = run_config(f"{family}/{network}", overrides, steps=steps, seed=seed)
    launch = Launch(workers=workers, max_failures=max_failures, mirror=mirror, profile=profile)
    check_network_name(registered_as, registered=registered)
    trained, evaluations = _train_and_test(config, dataset, launch, protocols, evaluation_images)
    return _result(trained, evaluations, register(trained, evaluations, registered_as) if registered else None)


@flow(name="cifar10-train")
@logged
@form
def cifar10_train(
    dataset: DatasetName,
    network: Annotated[Cifar10Network, Parameter(help="A network of Table 6, or its plain twin.")] = "resnet20",
    family: Cifar10Family = "cifar10",
    steps: Steps = None,
    workers: Workers = None,
    max_failures: MaxFailures = 3,
    mirror: Mirror = None,
    seed: Seed = None,
    overrides: Overrides = None,
    registered: Registered = True,
    registered_as: RegisteredAs = None,
    profile: Profile = False,
    protocols: Protocols = ["center"],  # noqa: B006
    evaluation_images: Images = None,
) -> dict[str, Any]:
    """Train a network of the paper's CIFAR-10 study, test it on single views, register it.

    Starting it again with the same parameters resumes where it stopped.
    """
    config = run_config(f"{family}/{network}", overrides, steps=steps, seed=seed)
    launch = Launch(workers=workers, max_failures=max_failures, mirror=mirror, profile=profile)
    check_network_name(registered_as, registered=registered)
    trained, evaluations = _train_and_test(config, dataset, launch, protocols, evaluation_images)
    return _result(trained, evaluations, register(trained, evaluations, registered_as) if registered else None)


@flow(name="digits-train")
@logged
@form
def digits_train(
    dataset: DatasetName,
    network: Annotated[DigitsNetwork, Parameter(help="A small network of the CIFAR-10 family.")] = "resnet20",
    steps: Steps = None,
    workers: Workers = None,
    max_failures: MaxFailures = 3,
    mirror: Mirror = None,
    seed: Seed = None,
    overrides: Overrides = None,
    registered: Registered = True,
    registered_as: RegisteredAs = None,
    profile: Profile = False,
    protocols: Protocols = ["center", "10-crop"],  # noqa: B006
    evaluation_images: Images = None,
) -> dict[str, Any]:
    """Train a small network on the built-in handwritten digits: minutes on a laptop, the same way as ImageNet."""
    config = run_config(f"digits/{network}", overrides, steps=steps, seed=seed)
    launch = Launch(workers=workers, max_failures=max_failures, mirror=mirror, profile=profile)
    check_network_name(registered_as, registered=registered)
    trained, evaluations = _train_and_test(config, dataset, launch, protocols, evaluation_images)
    return _result(trained, evaluations, register(trained, evaluations, registered_as) if registered else None)


@task(name="train")
def train(config: RunConfig, dataset: str, launch: Launch) -> TrainedRun:
    """Train, from the newest checkpoint if there is one."""
    return train_run(Workspace.of(), config, dataset, launch, say=say())


@task(name="evaluate")
def evaluate(reference: str, test: TestSpec) -> Evaluation:
    """Test one network; kept scores are reused."""
    return evaluate_models(Workspace.of(), [reference], test, say=say())[0]


@task(name="register")
def register(trained: TrainedRun, evaluations: dict[Protocol, Evaluation], name: str | None) -> str:
    """Register the network with its errors."""
    return str(register_run(Workspace.of(), trained, list(evaluations.values()), name=name, say=say()))


def _train_and_test(
    config: RunConfig, dataset: str, launch: Launch, protocols: Protocols, images: int | None
) -> tuple[TrainedRun, dict[Protocol, Evaluation]]:
    """Return the finished run and its tests by protocol."""
    trained = train(config, dataset, launch)
    tests = {protocol: TestSpec(dataset=dataset, protocol=protocol, images=images) for protocol in protocols}
    evaluations = {protocol: evaluate(str(trained.run.path), test) for protocol, test in tests.items()}
    rows = [{"protocol": protocol, **_errors(found)} for protocol, found in evaluations.items()]
    table(f"errors-{config.recipe}", rows, f"Errors of {config.recipe} on {dataset}, percent")
    return trained, evaluations


def _result(trained: TrainedRun, evaluations: dict[Protocol, Evaluation], version: str | None) -> dict[str, Any]:
    errors = {protocol: _errors(found) for protocol, found in evaluations.items()}
    return {
        "run": str(trained.run.path),
        "version": version,
        "errors": errors,
        "reused": trained.reused,
        **trained.result,
    }


def _errors(found: Evaluation) -> dict[str, float]:
    return {"top1": found.errors["top1"], "top5": found.errors["top5"], "images": int(found.errors["images"])}
