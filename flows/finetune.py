"""finetune: a network that has learned something, on images of one's own, to a tested, registered, gated version."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows.evaluate import SECONDS_TO_REGISTER
from flows.parameters import (
    Epochs,
    FrozenStages,
    Holdout,
    LayerDecay,
    LinearProbe,
    NormEval,
    OptionalName,
    Overrides,
    Reference,
    RegisteredAs,
    Seed,
    Size,
    Source,
    StudyLauncher,
    Workers,
)
from flows.shell import form, logged, outcome, phase
from flows.stage import stage
from flows.train import train_test_register
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.jobs.finetune import (
    PROTOCOL,
    FineTuning,
    backbone_of,
    dataset_name,
    gate,
    model_name,
    tuning_config,
)
from resnet_pipeline.jobs.initial_weights import InitialWeights
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.register import Registration
from resnet_pipeline.jobs.stage import describe
from resnet_pipeline.records import JsonObject
from resnet_pipeline.staging.stage import MAX_REFUSED, Options
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


@phase("promote", "promote · {version}", timeout=SECONDS_TO_REGISTER)
def promote(version: str) -> tuple[bool, str, str | None]:
    """Let the version through the gate, or say why not."""
    found = gate(Workspace.of(), version)
    _log.info("%s is %s: %s", version, "the champion" if found[0] else "no champion", found[1])
    return found


def _named() -> str:
    given = flow_run.parameters
    return f"{given['reference']} · {given.get('name') or dataset_name(given['source'])}"


@flow(name="finetune", flow_run_name=_named)
@logged
@form
def finetune(
    reference: Reference,
    source: Source,
    name: OptionalName = None,
    holdout: Holdout = 0,
    epochs: Epochs = 5.0,
    size: Size = None,
    frozen_stages: FrozenStages = None,
    linear_probe: LinearProbe = False,
    norm_eval: NormEval = False,
    layer_decay: LayerDecay = None,
    seed: Seed = None,
    overrides: Overrides = None,
    workers: Workers = None,
    launcher: StudyLauncher = "ray",
    registered_as: RegisteredAs = None,
) -> JsonObject:
    """Fine-tune a network on a folder of images: stage them, train with a new classifier, test, register, promote.

    Started again with the same parameters, it resumes.
    """
    tuning = FineTuning(
        reference=reference, epochs=epochs, size=size, frozen_stages=frozen_stages, linear_probe=linear_probe,
        norm_eval=norm_eval, layer_decay=layer_decay, seed=seed, overrides=overrides,
    )  # fmt: skip
    backbone, name = backbone_of(Workspace.of(), reference), name or dataset_name(source)
    options = Options(holdout=holdout)
    staged = outcome(stage(source, name, options, None, max_refused=MAX_REFUSED, replace=False))
    _log.info("%s", describe(staged))
    result = train_test_register(
        tuning_config(backbone, open_dataset(Workspace.of(), name), tuning),
        name,
        Launch(launcher=launcher, workers=workers),
        [TestSpec(dataset=name, protocol=PROTOCOL)],
        InitialWeights(reference=reference),
        registered=True,
        name=registered_as or model_name(name, backbone),
    )
    registration = Registration.of(RunDirectory.of(Workspace.of(), Path(result["run"]).name))
    assert registration is not None, "it was registered"
    promoted, reason, serve = outcome(promote(registration.uri))
    return {**result, "promoted": promoted, "promotion": reason, "serve": serve}
