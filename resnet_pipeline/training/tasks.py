"""What a network is trained for: its batches, the loss of a micro-batch, its validation.

The loop, its checkpoints and its launchers know a task by its protocol alone; classification is the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from resnet_pipeline.config import AugmentConfig, ModelConfig, RunConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend, Batch, Loader, Stream, train_batches, view_batches
from resnet_pipeline.evaluation.metrics import TopErrors
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.models.blocks import BasicBlock, Bottleneck
from resnet_pipeline.models.resnet import ResNet
from resnet_pipeline.models.weights import load_weights
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.distributed import all_reduce_sum
from resnet_pipeline.training.phases import PhasedBatches


@dataclass(frozen=True)
class Figures:
    """What some steps of training, or a validation, came to: ``values`` go into the metrics.

    A progress line shows those of training, and the first of a validation. ``error`` names the one that decides, the
    lower the better: the schedule follows it, and of the validation's the lowest makes the best checkpoint.
    """

    values: Mapping[str, float]
    error: str

    @property
    def decisive(self) -> float:
        """The value that decides."""
        return self.values[self.error]


class MicroBatch(Protocol):
    """What the loop itself looks at in a task's micro-batch; the rest is between the task and its network."""

    @property
    def index(self) -> torch.Tensor:
        """The samples' numbers in the training split, int64 [N]; the samples of a bad step are named by them."""


B = TypeVar("B", bound=MicroBatch)
OpenBatches = Callable[[int, int], AbstractContextManager[Iterator[B]]]
"""Opens this rank's micro-batches of some steps: takes the first step and their number (`Task.batches`)."""


class Task(Protocol[B]):
    """What a run trains its network for, in one of its processes; ``B`` is its micro-batch, whatever that holds.

    The loop calls `batches`, and for each micro-batch `forward`, `loss` and the backward pass; at log points
    `training_figures`; at evaluations `validate`.
    """

    @property
    def counts(self) -> tuple[str, ...]:
        """Names of the sums that `loss` returns; checkpoints keep the sums in this order."""

    def network(self) -> nn.Module:
        """Return the network with fresh weights, float32, on the CPU; the run's seed decides them."""

    def begin_with(self, network: nn.Module, weights: Path) -> None:
        """Fill a fresh network from the file of a classifier with which the run begins; UserError if it is another."""

    def batches(self, start_step: int, steps: int) -> AbstractContextManager[Iterator[B]]:
        """Return this rank's micro-batches of ``steps`` steps from ``start_step`` on, in order; closing ends loading.

        Their content is a function of seed and position alone: a resumed run depends on it.
        """

    def forward(self, model: nn.Module, batch: B) -> Any:
        """Return the network's outputs for a micro-batch; called in the run's precision.

        Without `loss` it is called to average batch norm's statistics. ``model`` may be wrapped for several processes.
        """

    def loss(self, outputs: Any, batch: B) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss of a micro-batch, a scalar in at least float32, and its counts, float64 [len(counts)].

        Both stay on the device, and nothing in it waits for the device.
        """

    def training_figures(self, sums: Mapping[str, float]) -> Figures:
        """Return the figures of the micro-batches whose counts add up to ``sums``, over all ranks."""

    def validate(self, model: nn.Module, alive: Callable[[], None]) -> Figures:
        """Test the network on all ranks together, each with its share, and leave it in training mode.

        ``alive`` is called for each batch, so that a long test is not taken for a process that hangs.
        """


class ClassificationTask:
    """One label for each image: cross entropy, and top-1 and top-5 errors of centre crops (`Task` of `Batch`)."""

    counts = ("loss", "wrong", "images")

    def __init__(self, config: RunConfig, dataset: Dataset, context: Context, *, backend: Backend = "auto") -> None:
        self._config, self._dataset, self._context, self._backend = config, dataset, context, backend

    def network(self) -> Classifier:
        """Return the classifier of the config for the dataset's classes and mean."""
        classifier, optim = (
            build_classifier(self._config.model, self._dataset, seed=self._config.seed),
            self._config.optim,
        )
        if isinstance(classifier.network, ResNet):
            classifier.network.freeze(optim.frozen_stages, norm_eval=bool(optim.norm_eval))
        return classifier

    def begin_with(self, network: nn.Module, weights: Path) -> None:
        """Take over the classifier of a file that `save_weights` wrote; UserError if it is another one."""
        load_weights(network, weights)

    def batches(self, start_step: int, steps: int) -> PhasedBatches:
        """Return training crops with their labels; UserError if the cache is too small for the order of shards."""
        return PhasedBatches(self._config, start_step, steps, self._crops)

    def forward(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the logits [N, classes]."""
        device = self._context.device
        logits: torch.Tensor = model(
            batch.images.to(device, non_blocking=True), batch.color.to(device, non_blocking=True)
        )
        return logits

    def loss(self, outputs: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean cross entropy with the smoothed labels, and the sums of loss, wrong answers and images."""
        logits = outputs.float() if outputs.dtype == torch.bfloat16 else outputs
        labels = batch.labels.to(logits.device, non_blocking=True)
        smoothing = self._config.optim.label_smoothing
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        wrong = (logits.detach().argmax(1) != labels).sum()
        images = len(labels)
        return loss, torch.stack([loss.detach().double() * images, wrong.double(), wrong.new_tensor(images)])

    def training_figures(self, sums: Mapping[str, float]) -> Figures:
        """Return the mean loss, and the top-1 error in percent."""
        images = max(sums["images"], 1)
        return Figures({"loss": sums["loss"] / images, "error": 100 * sums["wrong"] / images}, error="error")

    def validate(self, model: nn.Module, alive: Callable[[], None]) -> Figures:
        """Return "top1", "top5" in percent and the number of "images" of the evaluation split, one crop of each."""
        config, context = self._config, self._context
        counts = TopErrors()
        model.eval()
        with (
            torch.inference_mode(),
            view_batches(
                self._dataset,
                split=self._dataset.eval_split,
                views="center",
                resize=config.views.resize,
                crop=config.views.crop,
                batch_size=2 * config.micro_batch,
                rank=context.rank,
                world=context.world_size,
                device=context.device,
                backend=self._backend,
            ) as batches,
        ):
            for batch in batches:
                alive()
                logits = model(batch.images[:, 0].to(context.device))
                counts.add(logits, batch.labels.to(logits.device))
        model.train()
        return Figures(TopErrors(all_reduce_sum(counts.sums.to(context.device))).errors(), error="top1")

    def _crops(self, start_step: int, steps: int, augment: AugmentConfig) -> Loader[Batch]:
        stream = stream_of(self._config, self._context, self._backend, start_step, steps)
        return train_batches(self._dataset, augment=augment, **stream)


def stream_of(config: RunConfig, context: Context, backend: Backend, start_step: int, steps: int) -> Stream:
    """Return which micro-batches a rank of a run gets from a step on.

    Example: ``train_batches(dataset, augment=config.augment, **stream_of(config, LocalContext(), "auto", 0, 10))``
    """
    return Stream(
        seed=config.seed,
        batch=config.batch,
        micro_batch=config.micro_batch,
        rank=context.rank,
        world=context.world_size,
        start_step=start_step,
        steps=steps,
        device=context.device,
        backend=backend,
        block_shards=config.block_shards if config.order == "block" else None,
    )


def build_classifier(config: ModelConfig, dataset: Dataset, *, seed: int) -> Classifier:
    """Build a fresh classifier, float32, for the dataset's classes and mean; the seed decides the weights.

    Example: ``build_classifier(get_recipe("digits/resnet8").model, dataset, seed=0)``
    """
    torch.manual_seed(seed)
    network = build_model(
        config.name,
        num_classes=len(dataset.classes),
        shortcut=config.shortcut,
        stride=config.stride,
        pooling=config.pooling or "pytorch",
        checkpointing=config.checkpointing,
    )
    if config.last_gamma is not None:
        for module in network.modules():
            if isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.constant_(module.last_norm.weight, config.last_gamma)
    statistics = dataset.statistics
    mean = statistics.mean_image if config.mean == "image" else statistics.mean_rgb
    return Classifier(Normalize(torch.as_tensor(mean, dtype=torch.float32)), network)
