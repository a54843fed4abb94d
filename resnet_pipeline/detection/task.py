"""Detection as a task of the training loop: images with objects, the four or five losses, average precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
from resnet_pipeline.detection.on_classifier import OnClassifier
from resnet_pipeline.detection.results import Results
from resnet_pipeline.models import Classifier
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.tasks import Figures, stream_of

_LOSSES = {
    "classes": "loss_classifier",
    "boxes": "loss_box_reg",
    "objectness": "loss_objectness",
    "proposals": "loss_rpn_box_reg",
}
"""The losses by the names that metrics have, and those of torchvision."""


class DetectionTask(OnClassifier[Detector]):
    """Boxes, and masks, of all objects (`Task` of `DetectionBatch`): torchvision's losses, COCO's average precision."""

    def __init__(self, config: RunConfig, dataset: Dataset, context: Context, *, backend: Backend = "auto") -> None:
        assert config.detection is not None  # detection.task_of has looked
        super().__init__(config, dataset, context, backend=backend)
        self._detection = config.detection
        self._losses = {**_LOSSES, **({"masks": "loss_mask"} if self._detection.masks else {})}
        self.counts = ("loss", *self._losses, "images")
        split_of_objects(dataset, "train")
        split_of_objects(dataset, dataset.eval_split)

    def batches(self, start_step: int, steps: int) -> Loader[DetectionBatch]:
        """Return training images with their objects."""
        return object_batches(
            self._dataset,
            augment=self._config.augment,
            longest=self._detection.longest,
            masks=self._detection.masks,
            **stream_of(self._config, self._context, self._backend, start_step, steps),
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
        return self._summed(parts, len(batch.images))

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

    def _built(self, classifier: Classifier, network: ResNet) -> Detector:
        classes = len(self._dataset.classes)
        return build_detector(network, self._detection, classes=classes, normalize=classifier.normalize)


@contextmanager
def _drawn_by(device: torch.device, seed: int, position: int) -> Iterator[None]:
    """Let what is drawn inside depend on seed and position alone, and nothing outside on what is drawn inside."""
    key = mix(mix(np.array([seed], np.uint64)) ^ np.uint64(position))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(key[0] >> np.uint64(1)))
        yield
