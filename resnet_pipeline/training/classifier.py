"""The network of a run together with its preprocessing."""

from __future__ import annotations

import torch

from resnet_pipeline.config import ModelConfig, Precision
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.models import Classifier, Normalize, build_model


def build_classifier(
    config: ModelConfig, dataset: Dataset, *, seed: int, precision: Precision = "float32"
) -> Classifier:
    """Build a freshly initialised classifier for the dataset's classes and mean; the seed decides the weights.

    Its tensors are float32; with precision float64 the same values in float64.
    """
    torch.manual_seed(seed)
    network = build_model(
        config.name,
        num_classes=len(dataset.classes),
        shortcut=config.shortcut,
        stride=config.stride,
        checkpointing=config.checkpointing,
    )
    statistics = dataset.statistics
    mean = statistics.mean_image if config.mean == "image" else statistics.mean_rgb
    classifier = Classifier(Normalize(torch.as_tensor(mean, dtype=torch.float32)), network)
    return classifier.double() if precision == "float64" else classifier
