"""Localisation, detection and segmentation with the paper's networks (its appendices A to C): a task beside others."""

from __future__ import annotations

from typing import Any

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.tasks import ClassificationTask, Task


def task_of(config: RunConfig, dataset: Dataset, context: Context, *, backend: Backend = "auto") -> Task[Any]:
    """Return what a config trains for: detection if it has a detector, localisation, or else classification.

    It is on the part of the dataset that the config says. Raises UserError if the dataset is not one for it.

    Example: ``task_of(config, dataset, LocalContext()).network()``
    """
    dataset = dataset.trained_on(config.train_share)
    if config.localisation is not None:
        from resnet_pipeline.detection.localisation import LocalisationTask

        return LocalisationTask(config, dataset, context, backend=backend)
    if config.detection is None:
        return ClassificationTask(config, dataset, context, backend=backend)
    # torchvision's detectors and COCO's metrics take some time to import, which classification is spared
    from resnet_pipeline.detection.task import DetectionTask

    return DetectionTask(config, dataset, context, backend=backend)
