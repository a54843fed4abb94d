"""Layer responses: the standard deviation of each 3×3 layer's output (the paper, section 4.2 and figure 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.loaders import Backend, view_batches
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.scoring import chosen_samples
from resnet_pipeline.evaluation.trained_model import Member


def response_layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return (name, batch norm) of every 3×3 layer, first to last: what stands after a 3×3 convolution.

    Its output is the layer's response: after batch norm and before the nonlinearity or the addition.

    >>> from resnet_pipeline.models import build_model
    >>> [name for name, _ in response_layers(build_model("cifar-resnet8"))][:2]
    ['conv1', 'layer1.0.conv1']
    """
    modules = dict(network.named_modules())
    found: list[tuple[str, nn.Module]] = []
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            parent, _, own = name.rpartition(".")
            norm = modules.get(f"{parent}.{own.replace('conv', 'bn')}".lstrip("."))
            if isinstance(norm, nn.BatchNorm2d):
                found.append((name, norm))
    return found


def responses(
    member: Member,
    dataset: Dataset,
    *,
    split: str | None = None,
    images: int | None = None,
    device: torch.device | None = None,
    backend: Backend = "auto",
) -> npt.NDArray[np.float64]:
    """Return the standard deviation of each 3×3 layer's response float64 [L], over images, channels and positions.

    The images are centre crops of a split, or of ``images`` evenly spaced samples of it. Raises UserError if there is
    no image, or no 3×3 layer with batch norm.

    Example: ``responses(load_folder(run.path), dataset, images=100)``
    """
    # the images and the layers
    split, device = split or dataset.eval_split, device or torch.device("cpu")
    indices = chosen_samples(len(dataset.splits[split]), images)
    layers = response_layers(member.classifier.network)
    # refuse what has no answer
    if len(indices) == 0:
        raise UserError(f"split {split!r} of dataset {dataset.name!r} has no images")
    if not layers:
        raise UserError(f"{member.name} has no 3×3 layer with batch norm")
    # a hook on each layer adds up what passes: ones, values, squares
    sums = np.zeros((len(layers), 3))
    handles = [norm.register_forward_hook(_adding_to(sums[row])) for row, (_, norm) in enumerate(layers)]
    # run the images through the network; the hooks go whatever happens
    classifier = member.classifier.to(device).eval()
    try:
        with (
            torch.inference_mode(),
            view_batches(
                dataset,
                split=split,
                views="center",
                resize=member.views.resize,
                crop=member.views.crop,
                batch_size=16,
                indices=indices,
                device=device,
                backend=backend,
            ) as batches,
        ):
            for batch in batches:
                classifier(batch.images[:, 0].to(device))
    finally:
        for handle in handles:
            handle.remove()
    # std² = E[x²] − E[x]², which rounding may bring below 0
    mean = sums[:, 1] / sums[:, 0]
    return np.sqrt(np.maximum(sums[:, 2] / sums[:, 0] - mean**2, 0))


def _adding_to(row: npt.NDArray[np.float64]) -> Callable[..., None]:
    def add(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        # in double precision: the mean square less the squared mean loses digits
        exact = output.double()
        row[:] += [exact.numel(), exact.sum().item(), exact.square().sum().item()]

    return add
