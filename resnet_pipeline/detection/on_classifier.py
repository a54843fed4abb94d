"""What detection and localisation share as tasks: layers on a classifier, and a loss that is a sum of parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import nn

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend
from resnet_pipeline.models import Classifier
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.models.weights import load_weights
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.tasks import Figures, build_classifier

N = TypeVar("N", bound=nn.Module)


class OnClassifier(ABC, Generic[N]):
    """A task whose network N stands on a classifier's; its counts are "loss", the loss's parts, and "images"."""

    counts: tuple[str, ...]

    def __init__(self, config: RunConfig, dataset: Dataset, context: Context, *, backend: Backend = "auto") -> None:
        self._config, self._dataset, self._context, self._backend = config, dataset, context, backend

    @abstractmethod
    def _built(self, classifier: Classifier, network: ResNet) -> N:
        """Return the task's network on a classifier's; new layers are drawn from PyTorch's global generator."""

    def network(self) -> N:
        """Return the network of the config for the dataset's classes and mean, on a backbone with fresh weights."""
        return self._on(build_classifier(self._config.model, self._dataset, seed=self._config.seed))

    def begin_with(self, network: nn.Module, weights: Path) -> None:
        """Take over all of a classifier's file but its last layer."""
        classifier = build_classifier(self._config.model, self._dataset, seed=self._config.seed)
        load_weights(classifier, weights)
        network.load_state_dict(self._on(classifier).state_dict())

    def training_figures(self, sums: Mapping[str, float]) -> Figures:
        """Return the mean loss and its parts."""
        images = max(sums["images"], 1)
        return Figures({name: sums[name] / images for name in self.counts if name != "images"}, error="loss")

    def _summed(self, parts: torch.Tensor, images: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of a loss's parts float [P], and the sums over images of it and of them, as ``counts``."""
        loss = parts.sum()
        counted = torch.cat([loss[None], parts]).detach().double() * images
        return loss, torch.cat([counted, counted.new_tensor([images])])

    def _on(self, classifier: Classifier) -> N:
        network = classifier.network
        assert isinstance(network, ResNet)  # build_classifier makes no other
        network.freeze(self._config.optim.frozen_stages)
        torch.manual_seed(self._config.seed)  # of the new layers, the same whatever the backbone began with
        return self._built(classifier, network)
