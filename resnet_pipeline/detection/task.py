"""Detection as a task of the training loop: images with objects, the four or five losses, average precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset, split_of_objects
from resnet_pipeline.data.loaders import Backend, Loader
from resnet_pipeline.data.order import mix
from resnet_pipeline.detection.batches import DetectionBatch, object_batches
from resnet_pipeline.detection.finding import find_objects
from resnet_pipeline.detection.metrics import coco_metrics
from resnet_pipeline.detection.networks import Detector, build_detector
from resnet_pipeline.detection.results import Results
from resnet_pipeline.models import Classifier
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.models.weights import load_weights
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.tasks import Figures, build_classifier

_LOSSES = {
    "classes": "loss_classifier",
    "boxes": "loss_box_reg",
    "objectness": "loss_objectness",
    "proposals": "loss_rpn_box_reg",
}
"""The losses by the names that metrics have, and those of torchvision."""


class DetectionTask:
    """Boxes, and masks, of all objects (`Task` of `DetectionBatch`): torchvision's losses, COCO's average precision."""

    def __init__(self, config: RunConfig, dataset: Dataset, context: Context, *, backend: Backend = "auto") -> None:
        assert config.detection is not None  # detection.task_of has looked
        self._config, self._dataset, self._context, self._backend = config, dataset, context, backend
        self._detection = config.detection
        self._losses = {**_LOSSES, **({"masks": "loss_mask"} if self._detection.masks else {})}
        split_of_objects(dataset, "train")
        split_of_objects(dataset, dataset.eval_split)

    @property
    def counts(self) -> tuple[str, ...]:
        """The whole loss, its parts, and the images."""
        return ("loss", *self._losses, "images")

    def network(self) -> Detector:
        """Return the detector of the config for the dataset's classes and mean, on a backbone with fresh weights."""
        return self._on(build_classifier(self._config.model, self._dataset, seed=self._config.seed))

    def begin_with(self, network: nn.Module, weights: Path) -> None:
        """Take over the backbone and the preprocessing of a classifier's file; its last layer is not the detector's."""
        classifier = build_classifier(self._config.model, self._dataset, seed=self._config.seed)
        load_weights(classifier, weights)
        network.load_state_dict(self._on(classifier).state_dict())

    def batches(self, start_step: int, steps: int) -> Loader[DetectionBatch]:
        """Return training images with their objects."""
        config, context = self._config, self._context
        return object_batches(
            self._dataset,
            augment=config.augment,
            longest=self._detection.longest,
            masks=self._detection.masks,
            seed=config.seed,
            batch=config.batch,
            micro_batch=config.micro_batch,
            rank=context.rank,
            world=context.world_size,
            start_step=start_step,
            steps=steps,
            device=context.device,
            backend=self._backend,
            block_shards=config.block_shards if config.order == "block" else None,
        )

    def forward(self, model: nn.Module, batch: DetectionBatch) -> dict[str, torch.Tensor]:
        """Return the losses by torchvision's names.

        Anchors and regions are sampled at random: by the seed and the batch's position, and nothing else.
        """
        device = self._context.device
        images = [image.to(device, non_blocking=True) for image in batch.images]
        targets = [{name: value.to(device, non_blocking=True) for name, value in t.items()} for t in batch.targets]
        with _drawn_by(device, self._config.seed, batch.position):
            losses: dict[str, torch.Tensor] = model(images, targets)
        return losses

    def loss(self, outputs: dict[str, torch.Tensor], batch: DetectionBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of the losses, and the sums over images of it and of its parts."""
        parts = torch.stack([outputs[name].float() for name in self._losses.values()])
        loss, images = parts.sum(), len(batch.images)
        counted = torch.cat([loss[None], parts]).detach().double() * images
        return loss, torch.cat([counted, counted.new_tensor([images])])

    def training_figures(self, sums: Mapping[str, float]) -> Figures:
        """Return the mean loss and its parts."""
        images = max(sums["images"], 1)
        return Figures({name: sums[name] / images for name in self.counts if name != "images"}, error="loss")

    def validate(self, model: nn.Module, alive: Callable[[], None]) -> Figures:
        """Return COCO's figures of the evaluation split, in percent; "error" is what is missing to a perfect "ap"."""
        results = self.detect(model, self._dataset.eval_split, alive)
        model.train()
        found = coco_metrics(self._dataset, results)
        figures = {"ap": found.ap, "ap50": found.ap50, "ap75": found.ap75, "error": 100 - max(found.ap, 0.0)}
        if self._detection.masks:
            of_masks = coco_metrics(self._dataset, results, kind="segm")
            figures |= {"mask_ap": of_masks.ap, "mask_ap50": of_masks.ap50}
        return Figures(figures, error="error")

    def detect(self, model: nn.Module, split: str, alive: Callable[[], None] = lambda: None) -> Results:
        """Return what the network finds in a split, each rank its share, the same on all of them.

        The network is a `Detector`, or an `ImprovedDetector`, which sees the images at its scales, too.
        """
        context = self._context
        model.eval()
        found = find_objects(
            model,
            self._dataset,
            split,
            self._config,
            device=context.device,
            rank=context.rank,
            world=context.world_size,
            backend=self._backend,
            on_images=lambda images: alive(),
        )
        return Results(split=split, found=found)

    def _on(self, classifier: Classifier) -> Detector:
        network = classifier.network
        assert isinstance(network, ResNet)  # build_classifier makes no other
        network.freeze(self._config.optim.frozen_stages)
        torch.manual_seed(self._config.seed)  # of the new layers, the same whatever the backbone began with
        return build_detector(
            network,
            self._detection,
            classes=len(self._dataset.classes),
            normalize=classifier.normalize,
        )


@contextmanager
def _drawn_by(device: torch.device, seed: int, position: int) -> Iterator[None]:
    """Let what is drawn inside depend on seed and position alone, and nothing outside on what is drawn inside."""
    key = mix(mix(np.array([seed], np.uint64)) ^ np.uint64(position))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(key[0] >> np.uint64(1)))
        yield
