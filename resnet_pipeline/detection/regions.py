"""An R-CNN on a localiser's boxes as a task of the training loop (the paper, appendix C).

It is trained RoI-centric: an example is a region, not an image, since an image of ILSVRC has one dominant object, and
regions of one image vary too little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.crops import Plan, color_offsets, flips
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend, Executor, Loader, stream_batches
from resnet_pipeline.data.order import Blocks, Int64, samples_at, uniform
from resnet_pipeline.detection.box_files import Float32, boxes_file, read_boxes
from resnet_pipeline.detection.localisation import localisation_errors, localised
from resnet_pipeline.detection.localiser import localisation_losses
from resnet_pipeline.detection.metrics import Float64, overlaps
from resnet_pipeline.detection.on_classifier import OnClassifier
from resnet_pipeline.detection.rcnn import CODER, RegionNetwork, as_boxes, rescored, windows_of
from resnet_pipeline.errors import UserError
from resnet_pipeline.models import Classifier
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.distributed import all_gather_objects
from resnet_pipeline.training.tasks import Figures, stream_of

_EVERY = 4  # one region of so many is on an object (Girshick et al., 2014, section 2.3: 32 of 128)
_OVERLAP = 0.5  # with an object, of a region that is on it (the same: 0.5)
_REGION = 101  # the number of a draw: those of data.crops and of localisation are others


@dataclass(frozen=True)
class RegionPlan(Plan):
    """Crops that are regions: whether each is on an object, bool [N], and the deltas to that float32 [N, 4], else 0."""

    positive: npt.NDArray[np.bool_]
    wanted: Float32


@dataclass(frozen=True)
class RegionBatch:
    """N regions uint8 [N, H, W, 3], their classes int64 [N], sample numbers int64 [N], colour offsets float [N, 3].

    ``positive`` int64 [N] is 1 for what is on an object of its class, else 0; ``wanted`` float [N, 4] are the deltas.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    color: torch.Tensor
    positive: torch.Tensor
    wanted: torch.Tensor


class RegionTask(OnClassifier[RegionNetwork]):
    """Scores and boxes of regions (`Task` of `RegionBatch`), tested on the few best boxes of each image.

    ``folder`` holds the localiser's boxes (`boxes_file`); without it, it is for networks and their weights alone.
    Raises UserError if the boxes are another localiser's or of other images.
    """

    counts = ("loss", "classes", "boxes", "images")

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        context: Context,
        *,
        backend: Backend = "auto",
        folder: Path | None = None,
    ) -> None:
        assert config.regions is not None  # detection.task_of has looked
        super().__init__(config, dataset, context, backend=backend)
        self._regions = config.regions
        if folder is not None:
            self._rows, self._boxes = self._opened(folder, "train")
            self._tested, self._tested_boxes = self._opened(folder, dataset.eval_split)
            self._samples = dataset.splits["train"].part(self._rows)

    def batches(self, start_step: int, steps: int) -> Loader[RegionBatch]:
        """Return regions, one in four on an object."""
        config, samples = self._config, self._samples

        def planned(positions: Int64, blocks: Blocks | None) -> RegionPlan:
            index = samples_at(positions, samples=len(samples), seed=config.seed, blocks=blocks)
            flip = flips(config.augment, config.seed, positions)
            color = color_offsets(config.augment, config.seed, positions, self._dataset.statistics.color_basis)
            draws = uniform(config.seed, positions, _REGION)
            window, positive, wanted = zip(
                *(
                    self._drawn(int(sample), at % _EVERY == 0, draw)
                    for sample, at, draw in zip(index, positions.tolist(), draws.tolist(), strict=True)
                ),
                strict=True,
            )
            deltas = np.stack(wanted)
            deltas[flip, 0] *= -1  # mirrored, an object on the right is on the left
            return RegionPlan(index, np.stack(window), config.augment.crop, flip, color, np.array(positive), deltas)

        def carried(
            executor: Executor, plans: Iterator[RegionPlan], positions: Iterator[Int64]
        ) -> Iterator[RegionBatch]:
            for plan, images in executor.crops(plans):
                assert isinstance(plan, RegionPlan)  # executors return the plans that they were given
                yield RegionBatch(
                    images,
                    torch.from_numpy(samples.labels[plan.index].astype(np.int64)),
                    torch.from_numpy(self._rows[plan.index]),
                    torch.from_numpy(plan.color),
                    torch.from_numpy(plan.positive.astype(np.int64)),
                    torch.from_numpy(plan.wanted),
                )

        return stream_batches(
            samples, planned, carried, **stream_of(config, self._context, self._backend, start_step, steps)
        )

    def forward(self, model: nn.Module, batch: RegionBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits [N] and box deltas [N, 4] of the regions."""
        given = (batch.images, batch.labels, batch.color)
        outputs: tuple[torch.Tensor, torch.Tensor] = model(
            *(each.to(self._context.device, non_blocking=True) for each in given)
        )
        return outputs

    def loss(self, outputs: tuple[torch.Tensor, torch.Tensor], batch: RegionBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of both losses, and the sums over regions of it and of both."""
        logits, deltas = (each.float() if each.dtype == torch.bfloat16 else each for each in outputs)
        positive, wanted = (each.to(logits.device, non_blocking=True) for each in (batch.positive, batch.wanted))
        parts = torch.stack(localisation_losses(logits[:, None], deltas[:, None], positive[:, None], wanted[:, None]))
        return self._summed(parts, len(batch.images))

    def validate(self, model: nn.Module, alive: Callable[[], None]) -> Figures:
        """Return "localisation_error" of the evaluation split in percent, with true classes and few boxes an image."""
        context, dataset, split = self._context, self._dataset, self._dataset.eval_split
        own = slice(context.rank, None, context.world_size)
        rows, few = self._tested[own], self._tested_boxes[own, :, : self._regions.validated]
        classes = dataset.splits[split].labels[rows][:, None].astype(np.int64)
        model.eval()
        found, _ = rescored(
            [model], dataset, split, rows, classes, few,
            crop=self._config.augment.crop, batch_size=2 * self._config.micro_batch, device=context.device,
            backend=self._backend, on_images=lambda images: alive(),
        )  # fmt: skip
        model.train()
        labels = dataset.splits[split].labels[:, None].astype(np.int64)
        boxes = np.zeros((len(labels), 1, 4))
        for part_rows, part in all_gather_objects((rows, found), context.world_size):
            boxes[part_rows] = part
        wrong = localisation_errors(dataset, split, labels, boxes)
        return Figures(
            {"localisation_error": 100 * float(wrong.mean()), "images": len(wrong)}, error="localisation_error"
        )

    def _drawn(self, sample: int, positive: bool, draw: float) -> tuple[Int64, bool, Float32]:
        samples = self._samples
        assert samples.objects is not None  # localised has looked
        objects, known = samples.objects.of(sample), self._boxes[sample, 0]
        return drawn_region(
            known[known[:, 4] > -np.inf, :4],
            objects.box[objects.label == samples.labels[sample]],
            (int(samples.width[sample]), int(samples.height[sample])),
            positive=positive,
            draw=draw,
        )

    def _opened(self, folder: Path, split: str) -> tuple[Int64, Float32]:
        """Return which images of a split have boxes of their class, and the localiser's of these."""
        path, rows = boxes_file(folder, split), localised(self._dataset, split)
        boxes, facts = read_boxes(path)
        if facts.weights_sha256 != self._regions.localiser:
            raise UserError(f"{path} has boxes of another localiser than the run is of: {facts.weights_sha256[:12]}…")
        if (facts.dataset_fingerprint, facts.split) != (self._dataset.fingerprint, split):
            raise UserError(f"{path} has boxes of other images than {split} of dataset {self._dataset.name!r}")
        if boxes.shape != (len(rows), 1, self._regions.proposals, 5):
            raise UserError(f"{path} has not {self._regions.proposals} boxes for each of {len(rows):,} images")
        return rows, boxes

    def _built(self, classifier: Classifier, network: ResNet) -> RegionNetwork:
        return RegionNetwork(classifier.normalize, network, self._regions, classes=len(self._dataset.classes))


def drawn_region(
    boxes: npt.NDArray[Any],
    objects: Float64,
    size: tuple[int, int],
    *,
    positive: bool,
    draw: float,
) -> tuple[Int64, bool, Float32]:
    """Return a region of an image: its window int64 [4], whether it is on an object, and deltas float32 [4] to that.

    It is one of the localiser's ``boxes`` [M, 4] or, as in R-CNN, an object's own, ``objects`` float64 [K, 4]; ``draw``
    in [0, 1) chooses, among those that are on an object if ``positive``, else among the others. An image that has none
    of these gives one of those. The overlap is the window's.

    Example: ``drawn_region(boxes, objects, (500, 375), positive=True, draw=0.5)``
    """
    windows = windows_of(np.concatenate([boxes, objects]), size)
    regions = as_boxes(windows)
    shared = overlaps(regions, objects)
    on = shared.max(axis=1) >= _OVERLAP
    chosen = np.flatnonzero(on == positive)
    chosen = chosen if len(chosen) else np.arange(len(on))
    at = int(chosen[int(draw * len(chosen))])
    wanted = np.zeros(4, np.float32)
    if on[at]:
        nearest = torch.from_numpy(objects[shared[at].argmax()][None])
        wanted = CODER.encode_single(nearest, torch.from_numpy(regions[at][None]))[0].float().numpy()
    return windows[at], bool(on[at]), wanted
