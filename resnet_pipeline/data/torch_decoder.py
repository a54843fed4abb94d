"""Plans carried out with Pillow and torchvision: the oracle of the DALI loader, and its fallback."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional as transforms

from resnet_pipeline.data.crops import Plan, ViewPlan, WholePlan
from resnet_pipeline.data.dataset import Split
from resnet_pipeline.data.image_files import ImageError, open_image


class TorchExecutor:
    """One image after the other, on the CPU; the finished batch goes to the device."""

    def __init__(self, samples: Split, device: torch.device, fill: npt.NDArray[np.float32] | None) -> None:
        self._samples, self._device = samples, device
        self._fill = torch.zeros(3) if fill is None else torch.from_numpy(np.rint(fill))

    def crops(self, plans: Iterator[Plan]) -> Iterator[tuple[Plan, torch.Tensor]]:
        """Yield each plan with its images uint8 [N, size, size, 3]."""
        for plan in plans:
            images = [
                self._crop(int(index), window.tolist(), plan.size, bool(flip))
                for index, window, flip in zip(plan.index, plan.window, plan.flip, strict=True)
            ]
            yield plan, torch.stack(images).permute(0, 2, 3, 1).contiguous().to(self._device)

    def views(self, plans: Iterator[ViewPlan]) -> Iterator[tuple[ViewPlan, torch.Tensor]]:
        """Yield each plan with its images uint8 [N, V, height, width, 3]."""
        for plan in plans:
            images = []
            for index, size, corners in zip(plan.index, plan.resized, plan.corners, strict=True):
                image = _resize(self._decode(int(index)), (int(size[0]), int(size[1])))
                height, width = plan.crop
                images.append(torch.stack([image[:, y : y + height, x : x + width] for y, x in corners]))
            yield plan, torch.stack(images).permute(0, 1, 3, 4, 2).contiguous().to(self._device)

    def whole_images(self, plans: Iterator[WholePlan]) -> Iterator[tuple[WholePlan, list[list[torch.Tensor]]]]:
        """Yield each plan with its images uint8 [h, w, 3]: a list per size, of one image per sample."""
        for plan in plans:
            decoded = [self._decode(int(index)) for index in plan.index]
            yield (
                plan,
                [
                    [
                        _resize(image, (int(height), int(width))).permute(1, 2, 0).contiguous().to(self._device)
                        for image, (height, width) in zip(decoded, sizes, strict=True)
                    ]
                    for sizes in plan.resized.transpose(1, 0, 2)
                ],
            )

    def _crop(self, index: int, window: list[int], size: int, flip: bool) -> torch.Tensor:
        y, x, height, width = window
        image = self._decode(index)
        inside = image[:, max(y, 0) : max(y, 0) + height + min(y, 0), max(x, 0) : max(x, 0) + width + min(x, 0)]
        if inside.shape[1:] != (height, width):
            canvas = self._fill.to(torch.uint8)[:, None, None].repeat(1, height, width)
            top, left = max(-y, 0), max(-x, 0)
            canvas[:, top : top + inside.shape[1], left : left + inside.shape[2]] = inside
            inside = canvas
        resized = _resize(inside, (size, size))
        return resized.flip(2) if flip else resized

    def _decode(self, index: int) -> torch.Tensor:
        try:
            with open_image(self._samples.encoded(index).tobytes()) as image:
                pixels = np.array(image.convert("RGB"))
        except ImageError as error:
            raise self._samples.broken(index, str(error)) from None
        return torch.from_numpy(pixels).permute(2, 0, 1)


def _resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    resized: torch.Tensor = transforms.resize(
        image, list(size), interpolation=transforms.InterpolationMode.BILINEAR, antialias=True
    )
    return resized
