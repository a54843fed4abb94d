"""Class probabilities of trained networks under a protocol; every sample once, the decoding shared by all networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend, view_batches
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.scores import Scores
from resnet_pipeline.evaluation.views import Protocol
from resnet_pipeline.models import Classifier, fully_convolutional
from resnet_pipeline.models.weights import weights_sha256

Progress = Callable[[int, int], None]
"""Called with the images done and the images in all."""


def evaluate(
    models: Mapping[str, Classifier],
    dataset: Dataset,
    protocol: Protocol,
    *,
    split: str | None = None,
    images: int | None = None,
    batch_size: int = 32,
    device: torch.device | None = None,
    backend: Backend = "auto",
    progress: Progress | None = None,
) -> dict[str, Scores]:
    """Score every sample of a split (or ``images`` evenly spaced ones) with each model.

    Probabilities (softmax) are averaged over all views of a sample, as the authors do. Raises UserError where the
    split is empty or a model's number of classes is not the dataset's.
    """
    device = device or torch.device("cpu")
    split = split or dataset.eval_split
    indices = chosen_samples(len(dataset.splits[split]), images)
    _check(models, dataset, split, len(indices))
    nets = {name: _scorer(model, protocol).to(device).eval() for name, model in models.items()}
    row = np.full(len(dataset.splits[split]), -1, dtype=np.int64)
    row[indices] = np.arange(len(indices))
    sums = {name: torch.zeros(len(indices), len(dataset.classes), dtype=torch.float64) for name in nets}
    seconds = dict.fromkeys(nets, 0.0)
    shared, done, start = 0.0, 0, time.perf_counter()
    for side in protocol.sides:
        with (
            torch.inference_mode(),
            view_batches(
                dataset,
                split=split,
                views=protocol.kind,
                resize=side,
                crop=protocol.crop,
                batch_size=batch_size,
                indices=indices,
                device=device,
                backend=backend,
            ) as batches,
        ):
            for batch in batches:
                views = batch.images.to(device)
                loaded = time.perf_counter()
                shared += loaded - start
                rows = torch.as_tensor(row)[batch.index.cpu()]
                for name, net in nets.items():
                    before = time.perf_counter()
                    # reading the result back waits for the device, so the time is the network's own
                    sums[name][rows] += _view_scores(net, views, protocol.mirror).double().cpu()
                    seconds[name] += time.perf_counter() - before
                done += len(rows)
                if progress:
                    progress(done, len(indices) * len(protocol.sides))
                start = time.perf_counter()
    return {
        name: Scores(
            model=name,
            weights_sha256=weights_sha256(models[name]),
            dataset_fingerprint=dataset.fingerprint,
            split=split,
            protocol=protocol.id,
            seconds=seconds[name] + shared / len(nets),
            keys=[dataset.splits[split].keys[i] for i in indices],
            labels=dataset.splits[split].labels[indices],
            probabilities=(sums[name] / len(protocol.sides)).float().numpy(),
        )
        for name in nets
    }


def chosen_samples(samples: int, images: int | None) -> npt.NDArray[np.int64]:
    """Return all sample numbers, or ``images`` evenly spaced ones, ascending."""
    if images is None or images >= samples:
        return np.arange(samples, dtype=np.int64)
    return (np.arange(images, dtype=np.int64) * samples) // images


def _check(models: Mapping[str, Classifier], dataset: Dataset, split: str, samples: int) -> None:
    if samples == 0:
        raise UserError(f"split {split!r} of dataset {dataset.name!r} has no images to evaluate")
    for name, model in models.items():
        classes = _classes(model)
        if classes != len(dataset.classes):
            raise UserError(f"model {name} has {classes} classes, dataset {dataset.name!r} has {len(dataset.classes)}")


def _classes(model: nn.Module) -> int:
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1].out_features


class _Cropped(nn.Module):
    """Softmax of a classifier, [N, C] for images uint8 [N, H, W, 3]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.model(images), dim=1)


class _Dense(_Cropped):
    """Softmax at every position of the map of class scores, averaged over positions."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.model(images), dim=1).mean(dim=(2, 3))


def _scorer(model: Classifier, protocol: Protocol) -> nn.Module:
    return _Dense(fully_convolutional(model, crop=protocol.crop)) if protocol.kind == "whole" else _Cropped(model)


def _view_scores(net: nn.Module, views: torch.Tensor, mirror: bool) -> torch.Tensor:
    """Average the scores over views uint8 [N, V, H, W, 3] and, with ``mirror``, their mirror images."""
    samples, count = views.shape[:2]
    images = views.flatten(0, 1)
    scores = net(images)
    if mirror:
        scores = (scores + net(images.flip(2))) / 2
    averaged: torch.Tensor = scores.view(samples, count, -1).mean(1)
    return averaged
