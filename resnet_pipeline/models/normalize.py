"""Preprocessing as the model's first module, so that a saved model can't meet the wrong one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Normalize(nn.Module):
    """Images uint8 [N, H, W, 3] to (image + colour offset − mean) / std, float32 [N, 3, H, W]; all in 0..255 units.

    ``mean`` is a colour [3] or a mean image [H, W, 3], RGB. If the images have another size than the mean image, its
    mean colour is subtracted. Without ``std`` nothing is divided, as in the paper: batch norm after the first
    convolution removes any scale of the input. The result is channels-last in memory, as the input is.
    A state dict brings its own mean and std, whatever their shapes: they belong to the weights that are loaded. Raises
    ValueError for other shapes and for a std that is not positive.

    Example: ``Normalize(torch.tensor([124.0, 117.0, 104.0]))(images)``
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor | None = None) -> None:
        super().__init__()
        _check(mean, std)
        self.register_buffer("mean", mean.detach().clone().float())
        self.register_buffer("std", None if std is None else std.detach().clone().float())

    def forward(self, images: torch.Tensor, color: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise images [N, H, W, 3] with optional colour offsets float [N, 3]."""
        mean: torch.Tensor = self.mean  # type: ignore[assignment]
        if mean.dim() == 3 and mean.shape[:2] != images.shape[1:3]:
            mean = mean.mean(dim=(0, 1))
        x = images.float() - mean
        if color is not None:
            x = x + color[:, None, None, :]
        std: torch.Tensor | None = self.std  # type: ignore[assignment]
        if std is not None:
            x = x / std
        return x.permute(0, 3, 1, 2)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *rest: Any) -> None:
        mean, std = state_dict.get(f"{prefix}mean"), state_dict.get(f"{prefix}std")
        if mean is not None:
            _check(mean, std)
            own: torch.Tensor = self.mean  # type: ignore[assignment]
            for name, value in (("mean", mean), ("std", std)):
                self.register_buffer(name, None if value is None else own.new_empty(value.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _check(mean: torch.Tensor, std: torch.Tensor | None) -> None:
    if mean.shape != (3,) and (mean.dim() != 3 or mean.shape[2] != 3):
        raise ValueError(f"mean must have shape [3] or [H, W, 3], not {list(mean.shape)}")
    if std is not None and std.shape != (3,):
        raise ValueError(f"std must have shape [3], not {list(std.shape)}")
    if std is not None and not (std > 0).all():
        raise ValueError(f"std must be positive, not {std.tolist()}")


class Classifier(nn.Module):
    """A network with its preprocessing: logits float [N, classes] for images uint8 [N, H, W, 3].

    Example: ``Classifier(Normalize(mean), build_model("resnet50"))(images)``
    """

    def __init__(self, normalize: Normalize, network: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.network = network

    def forward(self, images: torch.Tensor, color: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits for images uint8 [N, H, W, 3] with optional colour offsets float [N, 3] in 0..255 units."""
        logits: torch.Tensor = self.network(self.normalize(images, color))
        return logits
