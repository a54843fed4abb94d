"""The error in mid-training: one centre crop of every sample, on all ranks together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend, view_batches
from resnet_pipeline.evaluation.metrics import TopErrors
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.distributed import all_reduce_sum


def centre_errors(
    model: nn.Module,
    dataset: Dataset,
    config: RunConfig,
    context: Context,
    *,
    backend: Backend,
    alive: Callable[[], None],
) -> dict[str, float]:
    """Return {"top1", "top5"} in percent and the number of images of the dataset's evaluation split.

    Each rank looks at its share of the samples. ``alive`` is called for each batch. The model is in training mode
    afterwards.
    """
    counts = TopErrors()
    model.eval()
    with (
        torch.inference_mode(),
        view_batches(
            dataset,
            split=dataset.eval_split,
            views="center",
            resize=config.views.resize,
            crop=config.views.crop,
            batch_size=2 * config.micro_batch,
            rank=context.rank,
            world=context.world_size,
            device=context.device,
            backend=backend,
        ) as batches,
    ):
        for batch in batches:
            alive()
            logits = model(batch.images[:, 0].to(context.device))
            counts.add(logits, batch.labels.to(logits.device))
    model.train()
    return TopErrors(all_reduce_sum(counts.sums.to(context.device))).errors()
