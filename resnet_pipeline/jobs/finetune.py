"""Fine-tuning: another network's backbone on images of one's own, from a folder to a registered, gated version."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_pipeline.adapters.mlflow.registry import ModelVersion
from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import IntervalErrors, interval_errors
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.jobs.initial_weights import InitialWeights, begun_with
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.promote import gated, promote
from resnet_pipeline.jobs.references import load, parse
from resnet_pipeline.jobs.register import check_network_name, register_run
from resnet_pipeline.jobs.report import report_on_training
from resnet_pipeline.jobs.stage import StagedDataset, stage_dataset
from resnet_pipeline.jobs.train import TrainedRun, check_splits, run_config, train_run
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.sources.archives import ARCHIVES
from resnet_pipeline.staging.stage import Options
from resnet_pipeline.workspace import Workspace

PROTOCOL = "center"
"""How a fine-tuned network is tested: one crop of each image."""
_VALIDATIONS = 5  # at most, and one an epoch
_PROBE_RATE = 0.1  # one layer on fixed features: it takes a larger rate than the whole network does


@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How a network is fine-tuned; what is not said is the recipe's (``recipes.finetune``).

    ``epochs`` of the training images; ``size`` is the side of the crops in pixels; ``frozen_stages``, ``norm_eval`` and
    ``layer_decay`` are the fields of ``optim``; a ``linear_probe`` freezes all but the classifier.
    """

    reference: str
    epochs: float = 5.0
    size: int | None = None
    frozen_stages: int | None = None
    linear_probe: bool = False
    norm_eval: bool = False
    layer_decay: float | None = None
    seed: int | None = None
    overrides: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        others = {
            "--frozen-stages": self.frozen_stages is not None,
            "--norm-eval": self.norm_eval,
            "--layer-decay": self.layer_decay is not None,
        }
        said = [option for option, given in others.items() if given]
        if self.linear_probe and said:
            raise UserError(f"--linear-probe freezes all but the classifier; leave {' and '.join(said)} out")


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """What is fine-tuned: the network's name, and the options that it was built with."""

    network: str
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """What came of it; ``errors`` are of so many ``images``, ``promotion`` says why it is the champion, or why not."""

    dataset: StagedDataset
    trained: TrainedRun
    images: int
    errors: IntervalErrors
    version: ModelVersion
    report: Path
    promoted: bool
    promotion: str
    serve: str | None


def backbone_of(workspace: Workspace, reference: str) -> Backbone:
    """Return what a reference is fine-tuned as; UserError if it is no network, or one without a recipe.

    Example: ``backbone_of(Workspace.of(), "torchvision:resnet18").network``
    """
    member = load(workspace, parse(workspace, reference))
    network = member.classifier.network
    if not isinstance(network, ResNet):
        raise UserError(f"{reference} is no network of this program, so it can't be fine-tuned")
    get_recipe(f"finetune/{member.network}")
    built = network.architecture
    options = {"model.shortcut": None if built.shortcut == "none" else built.shortcut, "model.stride": built.stride}
    return Backbone(
        network=member.network,
        options={**options, **({"model.pooling": built.pooling} if built.pooling != "pytorch" else {})},
    )


def tuning_config(backbone: Backbone, dataset: Dataset, tuning: FineTuning) -> RunConfig:
    """Return the config that fine-tunes a backbone on a dataset; UserError for a field that can't be.

    Example: ``tuning_config(backbone, dataset, FineTuning(reference="torchvision:resnet18")).steps``
    """
    check_splits(dataset)
    recipe, given = f"finetune/{backbone.network}", dict(tuning.overrides or {})
    batch = given.get("batch", get_recipe(recipe).batch)
    images = len(dataset.splits["train"])
    epoch = max(1, round(images / batch)) if isinstance(batch, int) and batch > 0 else 1
    steps = max(2, round(tuning.epochs * epoch))
    changes: dict[str, Any] = {
        **backbone.options,
        "model.initial_head": "fresh",
        "steps": steps,
        "eval_every": max(epoch, math.ceil(steps / _VALIDATIONS)),
        "checkpoint_every": max(epoch, math.ceil(steps / _VALIDATIONS)),
    }
    if tuning.size is not None:
        larger = tuning.size * 8 // 7
        changes |= {"augment.crop": tuning.size, "views.crop": tuning.size, "views.resize": larger}
        changes |= {"views.scales": [tuning.size, larger]}
    if tuning.linear_probe:
        stages = 3 if backbone.network.startswith("cifar-") else 4
        changes |= {"optim.frozen_stages": stages, "optim.lr": _PROBE_RATE}
    changes |= {
        f"optim.{name}": value
        for name in ("frozen_stages", "layer_decay")
        if (value := getattr(tuning, name)) is not None
    }
    if tuning.norm_eval:
        changes["optim.norm_eval"] = True
    return run_config(recipe, {**changes, **given}, seed=tuning.seed)


def dataset_name(source: str) -> str:
    """Return the name of a dataset that was given none: the folder's or the archive's.

    >>> dataset_name("s3://bucket/images/blood cells.tar.gz")
    'blood-cells'
    """
    last = source.rstrip("/").rpartition("/")[2]
    ending = next((end for end in sorted(ARCHIVES, key=len, reverse=True) if last.lower().endswith(end)), "")
    name = re.sub(r"[^\w.-]+", "-", last.removeprefix("builtin:")[: len(last) - len(ending) or None]).strip("-.")
    return name or "images"


def model_name(name: str, backbone: Backbone) -> str:
    """Return what a fine-tuned network is registered as if it is given no name: its dataset and its network."""
    return f"{name}-{backbone.network}"


def finetune(
    workspace: Workspace,
    tuning: FineTuning,
    source: str,
    name: str | None = None,
    *,
    options: Options = Options(),  # noqa: B008 - frozen
    launch: Launch = Launch(),  # noqa: B008 - frozen
    registered_as: str | None = None,
) -> FineTuned:
    """Stage a source, fine-tune a network on it, test, register and report it, and let it through the gate.

    Called again it resumes, and reuses what is finished. A version that is not better than the champion by more than
    chance is no error: ``promoted`` says so. Raises UserError for whatever is wrong, for a bad reference before
    anything is staged.

    Example: ``finetune(Workspace.of(), FineTuning(reference="torchvision:resnet18"), "cells").version.uri``
    """
    check_network_name(registered_as, registered=True)
    backbone = backbone_of(workspace, tuning.reference)
    name = name or dataset_name(source)
    staged = stage_dataset(workspace, source, name, options=options)
    config = tuning_config(backbone, open_dataset(workspace, name), tuning)
    config, network = begun_with(workspace, config, name, InitialWeights(reference=tuning.reference))
    trained = train_run(workspace, config, name, launch, network)
    assert trained is not None, "only torchrun starts processes that help another one"
    test = TestSpec(dataset=name, protocol=PROTOCOL)
    evaluations = evaluate_models(workspace, [str(trained.run.path)], test)
    version = register_run(workspace, trained, evaluations, name=registered_as or model_name(name, backbone))
    page = report_on_training(workspace, trained, [test], evaluations)
    promoted, reason, serve = gate(workspace, version.uri)
    return FineTuned(
        dataset=staged,
        trained=trained,
        images=len(evaluations[0].scores.keys),
        errors=interval_errors(evaluations[0].scores),
        version=version,
        report=page,
        promoted=promoted,
        promotion=reason,
        serve=serve,
    )


def gate(workspace: Workspace, version: str) -> tuple[bool, str, str | None]:
    """Return whether a version is the champion now, why, or why not, and the command that serves it.

    Example: ``gate(Workspace.of(), "models:/cells-resnet18/1")``
    """
    return gated(lambda: promote(workspace, version, PROTOCOL))
