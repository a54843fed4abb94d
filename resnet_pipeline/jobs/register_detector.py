"""The registration of a finished detector: a version with its average precision, its result file and its model card."""

from __future__ import annotations

from resnet_pipeline.adapters.mlflow.registry import ModelVersion
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.detection.trained import protocol_of
from resnet_pipeline.jobs.detect import DetectorEvaluation
from resnet_pipeline.jobs.pictures import pictures_of
from resnet_pipeline.jobs.register_results import card_of, register_with_results, some_of
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.workspace import Workspace


def register_detector(
    workspace: Workspace, trained: TrainedRun, evaluation: DetectorEvaluation, *, name: str | None = None
) -> ModelVersion:
    """Register a finished detector as a model version that carries its precision, with pictures of what it finds.

    ``evaluation`` is of the dataset's evaluation split. ``name`` None is the recipe's, as ``scenes-maskrcnn-…``.
    A run that is registered already gets what is new.

    Example: ``register_detector(workspace, trained, evaluate_detectors(workspace, [run], test)[0]).uri``
    """
    run = trained.run
    config = run.config()
    detection = config.detection
    assert detection is not None  # it is a detector's
    dataset = open_dataset(workspace, run.dataset().name)
    precision, protocol = evaluation.measured(), protocol_of(config)
    facts = {
        "detects": f"{some_of(dataset.classes)}; a box{' and a mask' if detection.masks else ''} for each object",
        "network": f"{'Mask' if detection.masks else 'Faster'} R-CNN on {config.model.name}, form {detection.form}",
        "images": f"shorter side {config.views.resize} pixels, longer at most {detection.longest}",
    }
    return register_with_results(
        workspace,
        trained,
        dataset,
        name=name,
        figures={
            f"{each.kind}_{figure}": found
            for each in precision
            for figure, found in (("ap", (each.ap, each.ap_interval)), ("ap50", (each.ap50, each.ap50_interval)))
        },
        results={protocol: evaluation.path},
        card=card_of(trained, dataset, facts, norm=detection.norm, precision=tuple(precision)),
        picture=pictures_of(
            dataset, evaluation.results, run.path / "pictures" / f"{protocol}.png", of=evaluation.reference
        ),
    )
