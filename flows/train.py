"""imagenet-train, cifar10-train, digits-train: a recipe to a tested, registered model version."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from prefect import flow, task
from pydantic import Field

from flows.parameters import (
    DatasetName,
    EvaluationImages,
    Overrides,
    Protocols,
    Registered,
    Seed,
    Steps,
    Workers,
    documented,
)
from flows.shell import logged, say, table
from resnet_pipeline.config import RunConfig
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.jobs.evaluate import Evaluation, evaluate_models
from resnet_pipeline.jobs.register import register_run
from resnet_pipeline.jobs.train import TrainedRun, train_run
from resnet_pipeline.recipes import get_recipe
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
    Field(description="imagenet: as the paper; -fast: 90 epochs as today; -short: 18 epochs (residual networks only)."),
]
Cifar10Family = Annotated[
    Literal["cifar10", "cifar10-fast"],
    Field(description="cifar10: as the paper; -fast: 30 epochs as today (residual networks only)."),
]


@flow(name="imagenet-train")
@logged
@documented
def imagenet_train(
    network: Annotated[ImageNetNetwork, Field(description="A network of Tables 2 and 3.")] = "resnet50",
    family: ImageNetFamily = "imagenet",
    dataset: DatasetName = "ilsvrc2012",
    steps: Steps = None,
    workers: Workers = None,
    seed: Seed = 0,
    overrides: Overrides = {},  # noqa: B006 - Prefect shows the default in its form and never changes it
    protocols: Protocols = ["center", "10-crop"],  # noqa: B006
    evaluation_images: EvaluationImages = None,
    registered: Registered = True,
) -> dict[str, Any]:
    """Train a network of the paper on ImageNet, by default as the paper did, test it, register it.

    Starting it again with the same parameters goes on where it stopped.
    """
    config = _config(f"{family}/{network}", steps, seed, overrides)
    return _train_test_register(config, dataset, workers, protocols, evaluation_images, registered)


@flow(name="cifar10-train")
@logged
@documented
def cifar10_train(
    network: Annotated[Cifar10Network, Field(description="A network of Table 6, or its plain twin.")] = "resnet20",
    family: Cifar10Family = "cifar10",
    dataset: DatasetName = "cifar10",
    steps: Steps = None,
    workers: Workers = None,
    seed: Seed = 0,
    overrides: Overrides = {},  # noqa: B006
    protocols: Protocols = ["center"],  # noqa: B006
    evaluation_images: EvaluationImages = None,
    registered: Registered = True,
) -> dict[str, Any]:
    """Train a network of the paper's CIFAR-10 study, test it on single views, register it.

    Starting it again with the same parameters goes on where it stopped.
    """
    config = _config(f"{family}/{network}", steps, seed, overrides)
    return _train_test_register(config, dataset, workers, protocols, evaluation_images, registered)


@flow(name="digits-train")
@logged
@documented
def digits_train(
    network: Annotated[DigitsNetwork, Field(description="A small network of the CIFAR-10 family.")] = "resnet20",
    dataset: DatasetName = "digits",
    steps: Steps = None,
    workers: Workers = 2,
    seed: Seed = 0,
    overrides: Overrides = {},  # noqa: B006
    protocols: Protocols = ["center", "10-crop"],  # noqa: B006
    evaluation_images: EvaluationImages = None,
    registered: Registered = True,
) -> dict[str, Any]:
    """Train a small network on the built-in handwritten digits: minutes on a laptop, the same way as ImageNet."""
    config = _config(f"digits/{network}", steps, seed, overrides)
    return _train_test_register(config, dataset, workers, protocols, evaluation_images, registered)


@task(name="train")
def train(config: RunConfig, dataset: str, workers: int | str | None) -> TrainedRun:
    """Train on Ray, from the newest checkpoint where there is one."""
    return train_run(Workspace.of(), config, dataset, workers=workers, say=say())


@task(name="evaluate")
def evaluate(reference: str, dataset: str, protocol: str, images: int | None) -> Evaluation:
    """Test one network under one protocol; kept scores are reused."""
    return evaluate_models(Workspace.of(), [reference], dataset, protocol, images=images, say=say())[0]


@task(name="register")
def register(trained: TrainedRun, evaluations: list[Evaluation]) -> str:
    """Register the network with its errors."""
    return str(register_run(Workspace.of(), trained, evaluations, say=say()))


def _config(recipe: str, steps: int | None, seed: int, overrides: dict[str, Any]) -> RunConfig:
    assignments = [f"{key}={json.dumps(value)}" for key, value in {"seed": seed, **overrides}.items()]
    if steps is not None:
        assignments.append(f"steps={steps}")
    return with_overrides(get_recipe(recipe), assignments)


def _train_test_register(
    config: RunConfig,
    dataset: str,
    workers: int | str | None,
    protocols: Protocols,
    images: int | None,
    registered: bool,
) -> dict[str, Any]:
    trained = train(config, dataset, workers)
    reference = str(trained.run.path)
    evaluations = [evaluate(reference, dataset, protocol, images) for protocol in protocols]
    version = register(trained, evaluations) if registered else None
    errors = {
        protocol: {"top1": e.errors["top1"], "top5": e.errors["top5"], "images": int(e.errors["images"])}
        for protocol, e in zip(protocols, evaluations, strict=True)
    }
    table(
        f"errors-{config.recipe}",
        [{"protocol": name, **values} for name, values in errors.items()],
        f"Errors of {config.recipe} on {dataset}, percent",
    )
    return {"run": reference, "version": version, "errors": errors, "reused": trained.reused, **trained.result}
