"""ImageNet localisation as a task of the training loop (the paper, appendix C): crops with anchors, one box a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from resnet_pipeline.config import RunConfig, ViewConfig
from resnet_pipeline.data.crops import Plan, resized_sizes
from resnet_pipeline.data.dataset import Dataset, Split, split_of_objects
from resnet_pipeline.data.loaders import Backend, Loader, crop_batches, view_batches
from resnet_pipeline.data.order import Int64, uniform
from resnet_pipeline.data.whole_images import by_shape, whole_batches
from resnet_pipeline.detection.localiser import (
    Localiser,
    anchor_grid,
    localisation_losses,
    sampled_anchors,
    stride_of,
)
from resnet_pipeline.detection.metrics import Float64, localisation_wrong
from resnet_pipeline.detection.on_classifier import OnClassifier
from resnet_pipeline.errors import UserError
from resnet_pipeline.models import Classifier
from resnet_pipeline.models.fully_convolutional import feature_size
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.distributed import all_gather_objects
from resnet_pipeline.training.tasks import Figures, build_classifier, stream_of

Protocol = Literal["center", "dense"]
"""One crop of each image, or the whole image at each of some sizes."""

_ANCHORS = 100  # the number of a draw: those of data.crops are below
_LEAST_SIDE = 8.0  # of the part of an object that a crop has, in its pixels
BATCH_PIXELS = 2**21
"""Most pixels of a batch of whole images."""


@dataclass(frozen=True)
class LocalisationBatch:
    """N training crops uint8 [N, H, W, 3], their classes int64 [N], sample numbers int64 [N], colour offsets [N, 3].

    ``anchors`` int64 [N, S], ``positive`` int64 [N, S] and ``wanted`` float [N, S, 4] are what
    `localiser.sampled_anchors` has drawn for each.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    color: torch.Tensor
    anchors: torch.Tensor
    positive: torch.Tensor
    wanted: torch.Tensor


class LocalisationTask(OnClassifier[Localiser]):
    """A box for each class of an image (`Task` of `LocalisationBatch`); tested with the images' true classes.

    Images without a box of their class are not trained on. Without ``trains`` it is for `localise` alone, and the
    dataset needs no training images.
    """

    counts = ("loss", "objectness", "boxes", "images")

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        context: Context,
        *,
        backend: Backend = "auto",
        trains: bool = True,
    ) -> None:
        assert config.localisation is not None  # detection.task_of has looked
        super().__init__(config, dataset, context, backend=backend)
        self._localisation = config.localisation
        if trains:
            localised(dataset, dataset.eval_split)
            self._rows = localised(dataset, "train")
            self._samples = dataset.splits["train"].part(self._rows)

    def batches(self, start_step: int, steps: int) -> Loader[LocalisationBatch]:
        """Return training crops, each with its sampled anchors."""
        config = self._config
        network = build_classifier(config.model, self._dataset, seed=0).network
        assert isinstance(network, ResNet)  # build_classifier makes no other
        side = feature_size(network, config.augment.crop)
        grid = anchor_grid(self._localisation, (side, side), stride_of(network))

        def made(plan: Plan, images: torch.Tensor, positions: Int64) -> LocalisationBatch:
            drawn = uniform(config.seed, (positions[:, None] * len(grid) + np.arange(len(grid))).reshape(-1), _ANCHORS)
            sampled = [
                sampled_anchors(grid, boxes, own, self._localisation.sampled_anchors)
                for boxes, own in zip(
                    crop_boxes(self._samples, plan), drawn.reshape(len(positions), len(grid)), strict=True
                )
            ]
            return LocalisationBatch(
                images,
                torch.from_numpy(self._samples.labels[plan.index]),
                torch.from_numpy(self._rows[plan.index]),
                torch.from_numpy(plan.color),
                *(torch.stack(parts) for parts in zip(*sampled, strict=True)),
            )

        return crop_batches(
            self._dataset,
            self._samples,
            made,
            augment=config.augment,
            **stream_of(config, self._context, self._backend, start_step, steps),
        )

    def forward(self, model: nn.Module, batch: LocalisationBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits [N, S] and box deltas [N, S, 4] of the sampled anchors."""
        given = (batch.images, batch.labels[:, None], batch.color, batch.anchors)
        outputs: tuple[torch.Tensor, torch.Tensor] = model(
            *(each.to(self._context.device, non_blocking=True) for each in given)
        )
        return outputs

    def loss(
        self, outputs: tuple[torch.Tensor, torch.Tensor], batch: LocalisationBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of both losses, and the sums over images of it and of both."""
        logits, deltas = (each.float() if each.dtype == torch.bfloat16 else each for each in outputs)
        positive, wanted = (each.to(logits.device, non_blocking=True) for each in (batch.positive, batch.wanted))
        parts = torch.stack(localisation_losses(logits, deltas, positive, wanted))
        return self._summed(parts, len(batch.images))

    def validate(self, model: nn.Module, alive: Callable[[], None]) -> Figures:
        """Return "localisation_error" of the evaluation split in percent, with the true classes, on whole images."""
        split = self._dataset.eval_split
        labels = self._dataset.splits[split].labels[:, None]
        boxes, _ = self.localise(
            model, split, labels, sides=(self._config.views.resize,), on_images=lambda images: alive()
        )
        model.train()
        wrong = localisation_errors(self._dataset, split, labels, boxes)
        return Figures(
            {"localisation_error": 100 * float(wrong.mean()), "images": len(wrong)}, error="localisation_error"
        )

    def localise(
        self,
        model: nn.Module,
        split: str,
        classes: Int64,
        *,
        protocol: Protocol = "dense",
        sides: tuple[int, ...] | None = None,
        on_images: Callable[[int], None] = lambda images: None,
    ) -> tuple[Float64, Float64]:
        """Return a box for each of ``classes`` int64 [N, k] of a split's images, and how likely each is.

        Boxes are float64 [N, k, 4] in pixels of the stored images, the same on all ranks, each of which takes its
        share; scores are logits, float64 [N, k]. ``dense`` tests whole images whose shorter sides are ``sides``, by
        default ``views.scales``, and takes the likeliest box of all. ``on_images`` hears of each batch: of its images,
        or of none if they are seen again at another size.
        """
        context, views = self._context, self._config.views
        model.eval()
        samples = self._dataset.splits[split]
        boxes, scores = np.zeros((*classes.shape, 4)), np.full(classes.shape, -np.inf)
        common: dict[str, Any] = {
            "split": split,
            "batch_size": self._config.micro_batch,
            "device": context.device,
            "backend": self._backend,
        }
        opened: Loader[Any]
        if protocol == "center":
            share: dict[str, Any] = {"rank": context.rank, "world": context.world_size}
            opened = view_batches(
                self._dataset, views="center", resize=views.resize, crop=views.crop, **share, **common
            )
            parts = ((batch.images[:, 0], batch.index, views.resize, True) for batch in opened)
        else:
            chosen = sides or views.scales
            order = by_shape(samples.width, samples.height)[context.rank :: context.world_size]
            opened = whole_batches(self._dataset, sides=chosen, indices=order, batch_pixels=BATCH_PIXELS, **common)
            parts = ((batch.images, batch.index, chosen[batch.side], batch.side == 0) for batch in opened)
        own: list[tuple[Int64, Float64, Float64]] = []
        with torch.inference_mode(), opened:
            for images, index, side, new in parts:
                on_images(len(images) if new else 0)
                rows = index.numpy()
                found, logits = model(images.to(context.device), torch.from_numpy(classes[rows]).to(context.device))
                moved = stored_boxes(
                    found.double().cpu().numpy(), samples, rows, side, views if protocol == "center" else None
                )
                own.append((rows, moved, logits.double().cpu().numpy()))
        for part in all_gather_objects(own, context.world_size):
            for rows, found, logits in part:
                better = logits > scores[rows]
                boxes[rows] = np.where(better[:, :, None], found, boxes[rows])
                scores[rows] = np.where(better, logits, scores[rows])
        return boxes, scores

    def _built(self, classifier: Classifier, network: ResNet) -> Localiser:
        return Localiser(classifier.normalize, network, self._localisation, classes=len(self._dataset.classes))


def localised(dataset: Dataset, split: str) -> Int64:
    """Return which images of a split have a box of their class, int64 [N]; UserError if none has.

    Example: ``localised(dataset, "val")``
    """
    samples = split_of_objects(dataset, split)
    assert samples.objects is not None  # split_of_objects has looked
    rows = [i for i in range(len(samples)) if (samples.objects.of(i).label == samples.labels[i]).any()]
    if not rows:
        raise UserError(
            f"no image of split {split!r} of dataset {dataset.name!r} has a box of its class; localisation is for "
            "ILSVRC with its boxes (docs/operations.md)"
        )
    return np.array(rows, dtype=np.int64)


def localisation_errors(dataset: Dataset, split: str, classes: Int64, boxes: Float64) -> npt.NDArray[np.bool_]:
    """Return whether each image of a split that has boxes is localised wrongly, bool [N].

    ``classes`` int64 [M, k] and ``boxes`` float64 [M, k, 4] are of all its images. Their mean is ILSVRC's localisation
    error: with the five likeliest classes the top-5 error.

    Example: ``localisation_errors(dataset, "val", labels[:, None], boxes).mean()``
    """
    samples, rows = dataset.splits[split], localised(dataset, split)
    assert samples.objects is not None  # localised has looked
    truth = [samples.objects.of(int(row)) for row in rows]
    return localisation_wrong(truth, samples.labels[rows], classes[rows], boxes[rows])


def crop_boxes(samples: Split, plan: Plan) -> list[torch.Tensor]:
    """Return for each crop of a plan the boxes float [K, 4] of its image's class in its pixels, as far as it has them.

    Example: ``crop_boxes(dataset.splits["train"], plan)[0]``
    """
    assert samples.objects is not None  # localised has looked
    found = []
    for sample, (top, left, height, width), flip in zip(plan.index, plan.window, plan.flip, strict=True):
        objects = samples.objects.of(int(sample))
        box = objects.box[objects.label == samples.labels[sample]] - np.array([left, top, left, top])
        box = np.clip(box * (plan.size / np.array([width, height, width, height])), 0, plan.size)
        if flip:
            box = np.stack([plan.size - box[:, 2], box[:, 1], plan.size - box[:, 0], box[:, 3]], axis=1)
        kept = ((box[:, 2:] - box[:, :2]) >= _LEAST_SIDE).all(axis=1)
        found.append(torch.from_numpy(box[kept]).float())
    return found


def stored_boxes(boxes: Float64, samples: Split, rows: Int64, side: int, cropped: ViewConfig | None = None) -> Float64:
    """Return boxes [N, k, 4] of images resized to a shorter side, or of centre crops of them, in pixels as stored.

    Example: ``stored_boxes(found, dataset.splits["val"], rows, 256)``
    """
    width, height = samples.width[rows], samples.height[rows]
    resized = resized_sizes(width, height, side)
    corner = np.zeros_like(resized) if cropped is None else np.rint((resized - cropped.crop) / 2).astype(np.int64)
    scale = resized / np.stack([height, width], axis=1)
    away, factor = np.tile(corner[:, ::-1], 2), np.tile(scale[:, ::-1], 2)
    stored: Float64 = (boxes + away[:, None]) / factor[:, None]
    return stored
