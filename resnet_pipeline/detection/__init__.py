"""Localisation, detection and segmentation with the paper's networks (its appendices A to C): a task beside others."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend
from resnet_pipeline.models import Normalize, build_model
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.mirror import bring
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.tasks import ClassificationTask, Task


def task_of(
    config: RunConfig,
    dataset: Dataset,
    context: Context,
    *,
    backend: Backend = "auto",
    run: RunDirectory | None = None,
) -> Task[Any]:
    """Return what a config trains for: detection, localisation, the R-CNN on top of it, or else classification.

    It is on the part of the dataset that the config says. An R-CNN trains on boxes that are in the ``run`` or its home.
    Raises UserError if the dataset is not one for it.

    Example: ``task_of(config, dataset, LocalContext()).network()``
    """
    dataset = dataset.trained_on(config.train_share)
    if config.localisation is not None:
        from resnet_pipeline.detection.localisation import LocalisationTask

        return LocalisationTask(config, dataset, context, backend=backend)
    if config.regions is not None:
        from resnet_pipeline.detection.box_files import boxes_file, facts_file
        from resnet_pipeline.detection.regions import RegionTask

        for split in ("train", dataset.eval_split) if run else ():
            assert run is not None  # there were no splits
            bring(run, facts_file(boxes_file(run.path, split)), boxes_file(run.path, split))
        return RegionTask(config, dataset, context, backend=backend, folder=run.path if run else None)
    if config.detection is None:
        return ClassificationTask(config, dataset, context, backend=backend)
    # torchvision's detectors and COCO's metrics take some time to import, which classification is spared
    from resnet_pipeline.detection.task import DetectionTask

    return DetectionTask(config, dataset, context, backend=backend)


def untrained(config: RunConfig, *, classes: int) -> nn.Module:
    """Return the network that a config trains, for a file's weights to be loaded into: a `Detector`, `Localiser`, ….

    Example: ``untrained(get_recipe("voc/fasterrcnn-resnet50-c4"), classes=20)``
    """
    network = build_model(
        config.model.name,
        num_classes=classes,
        shortcut=config.model.shortcut,
        stride=config.model.stride,
        pooling=config.model.pooling or "pytorch",
    )
    if config.head is None:
        return network
    assert isinstance(network, ResNet)  # the config's networks are
    if config.localisation is not None:
        from resnet_pipeline.detection.localiser import Localiser

        return Localiser(Normalize(torch.zeros(3)), network, config.localisation, classes=classes)
    if config.regions is not None:
        from resnet_pipeline.detection.rcnn import RegionNetwork

        return RegionNetwork(Normalize(torch.zeros(3)), network, config.regions, classes=classes)
    from resnet_pipeline.detection.networks import build_detector

    assert config.detection is not None  # else it were one of the others
    return build_detector(network, config.detection, classes=classes, normalize=Normalize(torch.zeros(3)))


def weight_bytes(config: RunConfig, *, classes: int) -> int:
    """Return the bytes of the parameters of what a config trains, without making them.

    >>> from resnet_pipeline.recipes import get_recipe
    >>> weight_bytes(get_recipe("imagenet/resnet50"), classes=1000) / 4 / 1e6
    25.557032
    """
    with torch.device("meta"):  # weights need no values
        network = untrained(config, classes=classes)
    return sum(tensor.numel() * tensor.element_size() for tensor in network.parameters())
