"""Class probabilities of trained networks under a protocol; every sample once, the decoding shared by all networks.

The samples are cut into chunks, which depend on the dataset and the protocol alone. Each process computes a chunk in
the same batches. So any number of processes may compute the chunks in any order and keep them one by one: put together,
the scores are the same. So they are if a chunk is cut into pieces, since a piece is of whole batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from resnet_pipeline.data.crops import resized_sizes
from resnet_pipeline.data.dataset import Dataset, Split
from resnet_pipeline.data.loaders import Backend, decoded_pixels, slices, view_batches
from resnet_pipeline.data.order import Int64
from resnet_pipeline.data.whole_images import by_shape, whole_batches
from resnet_pipeline.device import allow_tf32
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.forward import Passes
from resnet_pipeline.evaluation.protocols import Protocol
from resnet_pipeline.evaluation.scores import Scores, merge_scores
from resnet_pipeline.models import Classifier, fold_batch_norm, fully_convolutional
from resnet_pipeline.models.weights import weights_sha256

CHUNK_PIXELS = 2**27
"""What one chunk's views have in all: 2,675 centre crops of 224 pixels, or 267 images at 10 crops each."""
# What is decoded together, before it is cut into passes: enough for a few threads, and 12 MB
_BATCH_PIXELS = 2**22


def evaluate(
    models: Mapping[str, Classifier],
    dataset: Dataset,
    protocol: Protocol,
    *,
    split: str | None = None,
    images: int | None = None,
    device: torch.device | None = None,
    backend: Backend = "auto",
) -> dict[str, Scores]:
    """Score every sample of a split (or ``images`` evenly spaced ones) with each model.

    Raises UserError if the split is empty, or if a model's number of classes is not the dataset's.

    Example: ``evaluate({"mine": classifier}, dataset, protocol_of("10-crop", views))["mine"].probabilities``
    """
    split = split or dataset.eval_split
    indices = chosen_samples(len(dataset.splits[split]), images)
    check_models(models, dataset)
    plan = plan_chunks(dataset, split, protocol, indices)
    parts = list(score_chunks(models, plan, device=device, backend=backend))
    return {name: merge_scores([part[name] for part in parts], plan.keys) for name in models}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is scored: samples of a split under a protocol, cut into chunks, each of sample numbers int64 [N]."""

    dataset: Dataset
    split: str
    protocol: Protocol
    chunks: Sequence[Int64]

    @property
    def keys(self) -> list[str]:
        """The names of all samples, in the split's order."""
        return [self.dataset.splits[self.split].keys[i] for i in np.sort(np.concatenate(self.chunks))]

    @property
    def pixels(self) -> int:
        """How many pixels the views of all samples have together: those that a network sees."""
        samples = self.dataset.splits[self.split]
        return sum(int(_view_pixels(samples, self.protocol, chunk).sum()) for chunk in self.chunks)

    def only(self, numbers: Sequence[int]) -> Plan:
        """Return the plan of some chunks alone, by their numbers."""
        return replace(self, chunks=[self.chunks[number] for number in numbers])


def chosen_samples(samples: int, images: int | None) -> Int64:
    """Return all sample numbers, or ``images`` evenly spaced ones, ascending.

    >>> chosen_samples(10, 4).tolist()
    [0, 2, 5, 7]
    """
    if images is None or images >= samples:
        return np.arange(samples, dtype=np.int64)
    return (np.arange(images, dtype=np.int64) * samples) // images


def plan_chunks(
    dataset: Dataset, split: str, protocol: Protocol, indices: Int64, *, chunk_pixels: int | None = None
) -> Plan:
    """Cut samples into chunks of about ``chunk_pixels`` (CHUNK_PIXELS) pixels in all their views; UserError for none.

    For whole images they are ordered by shape first, so that those of one size stand in one chunk.

    Example: ``plan_chunks(dataset, "val", protocol, chosen_samples(len(dataset.splits["val"]), None)).chunks``
    """
    samples = dataset.splits[split]
    if len(indices) == 0:
        raise UserError(f"split {split!r} of dataset {dataset.name!r} has no images to evaluate")
    if protocol.kind == "whole":
        indices = indices[by_shape(samples.width[indices], samples.height[indices])]
    pixels = _view_pixels(samples, protocol, indices)
    begins = np.cumsum(pixels) - pixels
    chunks = np.split(indices, np.flatnonzero(np.diff(begins // (chunk_pixels or CHUNK_PIXELS))) + 1)
    return Plan(dataset=dataset, split=split, protocol=protocol, chunks=chunks)


def _view_pixels(samples: Split, protocol: Protocol, indices: Int64) -> Int64:
    """Return how many pixels each sample has in all of its views, int64 [N]."""
    mirrors = 2 if protocol.mirror else 1
    if protocol.kind == "whole":
        sizes = [resized_sizes(samples.width[indices], samples.height[indices], side) for side in protocol.sides]
        return np.asarray(mirrors * np.sum([size.prod(1) for size in sizes], axis=0), np.int64)
    views = (5 if protocol.kind == "10-crop" else 1) * mirrors * len(protocol.sides)
    return np.full(len(indices), views * protocol.crop**2, np.int64)


def pieces(plan: Plan, number: int, most: int) -> list[Int64]:
    """Cut a chunk into at most ``most`` pieces of about one size; scored one by one they have the chunk's scores.

    They are so to the last bit on any device: a piece begins where a batch of the chunk begins for each shorter side,
    so every batch has the images that it has in the chunk. A network's sums may depend on that by a bit.

    Example: ``np.concatenate(pieces(plan, 0, 4))`` is ``plan.chunks[0]``
    """
    chunk, protocol = plan.chunks[number], plan.protocol
    samples = plan.dataset.splits[plan.split]
    if protocol.kind == "whole":
        width, height = samples.width[chunk], samples.height[chunk]
        sizes = np.stack([resized_sizes(width, height, side) for side in protocol.sides], axis=1)
        begins = np.append(0, np.flatnonzero((sizes[1:] != sizes[:-1]).any(2).all(1)) + 1)
    else:
        batches = slices(len(chunk), _batch_size(protocol), decoded_pixels(samples, chunk))
        begins = np.array([rows[0] for rows in batches])
    even = np.linspace(0, len(chunk), most, endpoint=False)
    cuts = np.unique(begins[np.searchsorted(begins, even).clip(max=len(begins) - 1)])
    return np.split(chunk, cuts[1:])


def class_count(model: nn.Module) -> int:
    """Return how many classes a classifier tells apart.

    >>> from resnet_pipeline.models import build_model
    >>> class_count(build_model("cifar-resnet8"))
    10
    """
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1].out_features


def check_models(models: Mapping[str, nn.Module], dataset: Dataset) -> None:
    """Raise UserError if a model's number of classes is not the dataset's."""
    for name, model in models.items():
        classes = class_count(model)
        if classes != len(dataset.classes):
            raise UserError(
                f"model {name} has {classes} classes, dataset {dataset.name!r} has {len(dataset.classes)}: "
                "its scores would mean nothing there"
            )


@dataclass(frozen=True)
class Prepared:
    """Networks as they are run under a protocol on a device, and their weights' SHA-256, by name.

    Preparing takes longer than one image does, so a caller that tests images one by one keeps this.
    """

    nets: Mapping[str, nn.Module]
    digests: Mapping[str, str]


def prepare(
    models: Mapping[str, Classifier],
    protocol: Protocol,
    device: torch.device | None = None,
    *,
    digests: Mapping[str, str] | None = None,
) -> Prepared:
    """Fold the networks for a protocol and bring them to a device, the CPU by default; a GPU computes in float32.

    ``digests`` are their weights' SHA-256 if they are known; else they are computed.
    """
    if device is not None and device.type == "cuda":
        allow_tf32(False)
    return Prepared(
        {name: _scorer(model, protocol).to(device or torch.device("cpu")).eval() for name, model in models.items()},
        digests or {name: weights_sha256(model) for name, model in models.items()},
    )


def score_chunks(
    models: Mapping[str, Classifier] | Prepared,
    plan: Plan,
    *,
    device: torch.device | None = None,
    backend: Backend = "auto",
    on_images: Callable[[int], None] = lambda images: None,
    digests: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Scores]]:
    """Yield each chunk's scores by model, float32, in the chunk's order; models may be prepared for this protocol.

    ``digests`` are the models' SHA-256 as for `prepare`.

    A model's ``seconds`` are those of its own passes and its share of the decoding. ``on_images`` is called after each
    batch with the number of images done so far.

    Example: ``merge_scores([found["mine"] for found in score_chunks({"mine": classifier}, plan)], plan.keys)``
    """
    # the networks in the form that tests them
    dataset, split, protocol = plan.dataset, plan.split, plan.protocol
    device = device or torch.device("cpu")
    prepared = models if isinstance(models, Prepared) else prepare(models, protocol, device, digests=digests)
    nets, digests = prepared.nets, prepared.digests
    samples = dataset.splits[split]
    scored = 0
    # sample number -> row of the chunk at hand
    row = np.empty(len(samples), dtype=np.int64)
    with Passes(device) as passes:
        for chunk in plan.chunks:
            # nothing is summed yet, and no time is taken
            row[chunk] = np.arange(len(chunk))
            sums = {name: torch.zeros(len(chunk), len(dataset.classes), dtype=torch.float64) for name in nets}
            seconds, shared, start, seen = dict.fromkeys(nets, 0.0), 0.0, time.perf_counter(), 0
            # decode a batch once, and run all networks on it
            for images, index in _view_images(plan, chunk, device, backend):
                loaded = time.perf_counter()
                shared += loaded - start
                rows = torch.as_tensor(row[index.numpy()])
                for name, net in nets.items():
                    before = time.perf_counter()
                    # reading the result back waits for the device, so the time is the network's own
                    sums[name].index_add_(0, rows, passes.average(net, images, mirror=protocol.mirror).double())
                    seconds[name] += time.perf_counter() - before
                seen += len(rows)
                on_images(scored + seen // len(protocol.sides))
                start = time.perf_counter()
            scored += len(chunk)
            # the sums over sides and views become the chunk's scores
            yield {
                name: Scores(
                    model=name,
                    weights_sha256=digests[name],
                    dataset_fingerprint=dataset.fingerprint,
                    split=split,
                    protocol=protocol.id,
                    seconds=seconds[name] + shared / len(nets),
                    keys=[samples.keys[i] for i in chunk],
                    labels=samples.labels[chunk],
                    probabilities=_finite(name, _averaged(sums[name], protocol).float().numpy(), samples, chunk),
                )
                for name in nets
            }


def _view_images(
    plan: Plan, chunk: Int64, device: torch.device, backend: Backend
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield views uint8 [N, V, h, w, 3] on the device and sample numbers [N]: each sample once per shorter side."""
    dataset, split, protocol = plan.dataset, plan.split, plan.protocol
    if protocol.kind == "whole":
        with whole_batches(
            dataset,
            split=split,
            sides=protocol.sides,
            indices=chunk,
            batch_pixels=_BATCH_PIXELS,
            device=device,
            backend=backend,
        ) as found:
            for group in found:
                yield group.images[:, None].to(device), group.index
        return
    for side in protocol.sides:
        with view_batches(
            dataset,
            split=split,
            views=protocol.kind,
            resize=side,
            crop=protocol.crop,
            batch_size=_batch_size(protocol),
            indices=chunk,
            device=device,
            backend=backend,
        ) as batches:
            for batch in batches:
                yield batch.images.to(device), batch.index.cpu()


def _batch_size(protocol: Protocol) -> int:
    return max(1, _BATCH_PIXELS // (protocol.crop**2 * (5 if protocol.kind == "10-crop" else 1)))


class _Scorer(nn.Module):
    """What is averaged of a classifier: its probabilities or logits float [N, C] for images uint8 [N, H, W, 3].

    If the classifier returns a map [N, C, h, w], it is the mean over the map's positions.
    """

    def __init__(self, model: nn.Module, protocol: Protocol) -> None:
        super().__init__()
        self.model = model
        self.softmax = protocol.average == "softmax"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.model(images)
        if self.softmax:
            scores = torch.softmax(scores, dim=1)
        return scores.mean(dim=(2, 3)) if scores.dim() == 4 else scores


def _scorer(model: Classifier, protocol: Protocol) -> nn.Module:
    fast = fold_batch_norm(model)
    return _Scorer(fully_convolutional(fast, crop=protocol.crop) if protocol.kind == "whole" else fast, protocol)


def _finite(name: str, scores: npt.NDArray[np.float32], samples: Split, chunk: Int64) -> npt.NDArray[np.float32]:
    """Return the scores float32 [N, C]; UserError, naming the first sample whose are no numbers."""
    wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(wrong):
        raise UserError(
            f"{name}: what it computes for {len(wrong):,} of {len(scores):,} images is not finite (the first: "
            f"{samples.key_of(int(chunk[wrong[0]]))}); its weights are of no use"
        )
    return scores


def _averaged(sums: torch.Tensor, protocol: Protocol) -> torch.Tensor:
    mean = sums / len(protocol.sides)
    return torch.softmax(mean, dim=1) if protocol.average == "logits" else mean
