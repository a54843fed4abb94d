"""The registration of a finished run by what it was trained for, tested first as its task is."""

from __future__ import annotations

from resnet_pipeline.adapters.mlflow.registry import ModelVersion
from resnet_pipeline.jobs.register import register_run
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.workspace import Workspace


def register_trained(workspace: Workspace, trained: TrainedRun, *, name: str | None = None) -> ModelVersion | None:
    """Register a finished run on the dataset that it was trained on, under ``name`` or, None, its recipe's.

    Detectors and localisers are tested on all images of its evaluation split; what is kept of a test is reused. Returns
    None for an R-CNN, which is not registered: it gives no boxes without its localiser.

    Example: ``register_trained(workspace, trained)``
    """
    if trained.run.config().regions is not None:
        return None
    task, reference, dataset = trained.run.config().task, str(trained.run.path), trained.run.dataset().name
    if task == "classification":
        return register_run(workspace, trained, name=name)
    # torchvision's detectors and COCO's metrics take some time to import, which classification is spared
    if task == "detection":
        from resnet_pipeline.jobs.detect import DetectionTest, evaluate_detectors
        from resnet_pipeline.jobs.register_detector import register_detector

        (evaluation,) = evaluate_detectors(workspace, [reference], DetectionTest(dataset=dataset))
        return register_detector(workspace, trained, evaluation, name=name)
    from resnet_pipeline.jobs.localise import localise
    from resnet_pipeline.jobs.register_localiser import register_localiser

    return register_localiser(workspace, trained, [localise(workspace, reference, dataset)], name=name)
