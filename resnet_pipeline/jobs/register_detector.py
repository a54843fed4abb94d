"""The registration of a finished detector: a version with its average precision, its result file and its model card."""

from __future__ import annotations

from collections.abc import Sequence

from resnet_pipeline.adapters.mlflow.registry import ModelVersion, describe, register
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.detection.trained import protocol_of
from resnet_pipeline.jobs.attempt import left_to_do
from resnet_pipeline.jobs.detect import DetectorEvaluation
from resnet_pipeline.jobs.pictures import pictures_of
from resnet_pipeline.jobs.register import Registration, data_facts, example_image, made_by, make_candidate
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.progress import per_second
from resnet_pipeline.report.deviations import deviations_of
from resnet_pipeline.report.model_card import MeasuredPrecision, ModelCard
from resnet_pipeline.report.terminal import duration
from resnet_pipeline.workspace import Workspace


def register_detector(
    workspace: Workspace, trained: TrainedRun, evaluation: DetectorEvaluation, *, name: str | None = None
) -> ModelVersion:
    """Register a finished detector as a model version that carries its precision, with pictures of what it finds.

    ``evaluation`` is of the dataset's evaluation split. ``name`` None is the recipe's, as ``scenes-maskrcnn-…``.
    A run that is registered already gets what is new.

    Example: ``register_detector(workspace, trained, evaluate_detectors(workspace, [run], test)[0]).uri``
    """
    tracking, run = Tracking(workspace), trained.run
    config = run.config()
    dataset = open_dataset(workspace, run.dataset().name)
    precision = evaluation.measured()
    protocol = protocol_of(config)
    tags = {
        "split": evaluation.split,
        "split_images": str(len(dataset.splits[evaluation.split])),
        "protocol": protocol,
        "classes": str(len(dataset.classes)),
    }
    found = {
        f"{each.kind}_{figure}{suffix}": text
        for each in precision
        for figure, value, (low, high) in (
            ("ap", each.ap, each.ap_interval),
            ("ap50", each.ap50, each.ap50_interval),
        )
        for suffix, text in (("", f"{value:.3f}"), ("_interval", f"{low:.3f} to {high:.3f}"))
    }
    picture = pictures_of(dataset, evaluation, run.path / "pictures" / f"{protocol}.png")
    with left_to_do(f"{config.recipe} is trained ({run.path}), but not registered"):
        version = register(tracking, run, name, tags=tags, example=example_image(config.views))
        describe(
            tracking,
            version,
            tags=found,
            metrics={
                f"test/{each.kind}_{figure}": value
                for each in precision
                for figure, value in (("ap", each.ap), ("ap50", each.ap50))
            },
            scores={protocol: evaluation.path},
            card=_card(trained, config, dataset, precision).markdown(),
        )
        tracking.log_file(run, picture, "pictures")
        known = Registration.of(run)
        if known is None or known.uri != version.uri:  # an earlier call may have come no further than the version
            make_candidate(tracking, version)
    Registration(version=str(version), uri=version.uri).keep(run)
    return version


def _card(
    trained: TrainedRun, config: RunConfig, dataset: Dataset, precision: Sequence[MeasuredPrecision]
) -> ModelCard:
    result, detection = trained.result, config.detection
    assert detection is not None  # it is a detector's
    kind = "Mask R-CNN" if detection.masks else "Faster R-CNN"
    classes = ", ".join(dataset.classes[:20]) + (", …" if len(dataset.classes) > 20 else "")
    return ModelCard(
        title=f"{config.recipe} on {dataset.name}",
        facts={
            "detects": f"{classes}; a box{' and a mask' if detection.masks else ''} for each object",
            "network": f"{kind} on {config.model.name}, form {detection.form}",
            "images": f"shorter side {config.views.resize} pixels, longer at most {detection.longest}",
            "weights (SHA-256)": result.weights_sha256,
            "run": trained.run.name,
        },
        data=data_facts(dataset),
        training={
            "recipe": config.recipe,
            "steps": f"{result.steps:,} of {config.batch} images; batch norm {detection.norm}",
            "optimiser": f"SGD, rate {config.optim.lr}, momentum {config.optim.momentum}, weight decay "
            f"{config.optim.weight_decay}; schedule {config.schedule.kind}",
            "seed": str(config.seed),
            "took": f"{duration(result.seconds)} on {result.workers} × {result.device}, "
            f"{per_second(result.images_per_second)} images/s",
            "made by": made_by(),
        },
        errors=(),
        deviations=deviations_of(config),
        precision=precision,
    )
