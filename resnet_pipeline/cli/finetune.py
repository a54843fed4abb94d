"""``resnet-pipeline finetune``: a network that has learned something, on images of one's own."""

from __future__ import annotations

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
from resnet_pipeline.cli.console import say
from resnet_pipeline.cli.options import Json, Root, write_result
from resnet_pipeline.records import plain
from resnet_pipeline.workspace import Workspace


def finetune(
    reference: Reference,
    source: Source,
    name: OptionalName = None,
    root: Root = None,
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
    json_file: Json = None,
) -> None:
    """Fine-tune a network on a folder of images: staged, trained with a new classifier, tested, registered, gated.

    After an interruption the same command resumes.
    """
    from resnet_pipeline.jobs.finetune import FineTuning
    from resnet_pipeline.jobs.finetune import finetune as finetune_job
    from resnet_pipeline.jobs.launch import Launch
    from resnet_pipeline.jobs.stage import describe
    from resnet_pipeline.staging.stage import Options

    tuning = FineTuning(
        reference=reference, epochs=epochs, size=size, frozen_stages=frozen_stages, linear_probe=linear_probe,
        norm_eval=norm_eval, layer_decay=layer_decay, seed=seed, overrides=overrides,
    )  # fmt: skip
    found = finetune_job(
        Workspace.of(root), tuning, source, name, options=Options(holdout=holdout),
        launch=Launch(launcher=launcher, workers=workers), registered_as=registered_as,
    )  # fmt: skip
    say(describe(found.dataset))
    errors, (low, high) = found.errors, found.errors.top1_interval
    say(
        f"{found.version}: top-1 error {errors.top1:.2f} % (95 % interval {low:.2f} to {high:.2f}) "
        f"on {found.images:,} images; run {found.trained.run.path}"
    )
    say(f"{'it is the champion' if found.promoted else 'it is no champion'}: {found.promotion}")
    if found.serve:
        say(f"serve it:  {found.serve}")
    say(f"Report: {found.report}")
    write_result(
        json_file,
        {
            **plain(found.trained.result),
            "run": str(found.trained.run.path),
            "version": found.version.uri,
            "errors": plain(errors),
            "promoted": found.promoted,
            "promotion": found.promotion,
            "report": str(found.report),
            "reused": found.trained.reused,
        },
    )
