"""Decoded images of many sizes to one batch, by PyTorch's antialiased kernel in threads.

That kernel is by the authors of Pillow-SIMD and uses AVX2. For uint8 images whose channels lie together it takes a
fifth of the time of DALI's on the CPU. Its pixels differ from Pillow's by one at most. docs/LOG.md has the figures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.nn.functional import interpolate
from torch.utils.dlpack import from_dlpack

from resnet_pipeline.data.crops import Plan, ViewPlan, WholePlan
from resnet_pipeline.parallel import work_alone


class Resizer:
    """Threads that resize and cut the images of a batch; the kernel runs outside Python's lock."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="resize")
        self._forgo_inner_threads()

    def crops(self, plan: Plan, windows: Any) -> torch.Tensor:
        """Return a batch uint8 [N, size, size, 3] of decoded windows, N arrays uint8 [h, w, 3]."""
        images = torch.empty((len(plan.index), plan.size, plan.size, 3), dtype=torch.uint8)

        def one(i: int) -> None:
            crop = _resized(windows[i], (plan.size, plan.size))
            images[i].copy_((crop.flip(3) if plan.flip[i] else crop)[0].permute(1, 2, 0))

        self._each(len(images), one)
        return images

    def views(self, plan: ViewPlan, decoded: Any) -> torch.Tensor:
        """Return a batch uint8 [N, V, height, width, 3] of decoded images, N arrays uint8 [h, w, 3]."""
        count, (height, width) = plan.corners.shape[1], plan.crop
        images = torch.empty((len(plan.index), count, height, width, 3), dtype=torch.uint8)

        def one(i: int) -> None:
            resized = _resized(decoded[i], (int(plan.resized[i, 0]), int(plan.resized[i, 1])))[0].permute(1, 2, 0)
            for view, (y, x) in zip(images[i], plan.corners[i].tolist(), strict=True):
                view.copy_(resized[y : y + height, x : x + width])

        self._each(len(images), one)
        return images

    def whole_images(self, plan: WholePlan, decoded: Any) -> list[list[torch.Tensor]]:
        """Return images uint8 [h, w, 3], a list per size, of decoded images, N arrays uint8 [h, w, 3]."""
        images: list[list[torch.Tensor]] = [[torch.empty(0)] * len(plan.index) for _ in range(plan.resized.shape[1])]

        def one(i: int) -> None:
            for row, (height, width) in zip(images, plan.resized[i].tolist(), strict=True):
                row[i] = _resized(decoded[i], (height, width))[0].permute(1, 2, 0)

        self._each(len(plan.index), one)
        return images

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True)

    def _forgo_inner_threads(self) -> None:
        """Let each of our threads work alone: a team of OpenMP threads for every copy would cost more than it gains.

        PyTorch keeps the number per thread, and the last one that was set for new threads. So the old one is set again.
        """
        own, all_here = torch.get_num_threads(), threading.Barrier(self._threads)

        def alone(_: int) -> None:
            work_alone()
            all_here.wait()  # so that each thread takes one of these calls

        list(self._pool.map(alone, range(self._threads)))
        torch.set_num_threads(own)

    def _each(self, count: int, one: Callable[[int], None]) -> None:
        # one call per thread, not per image: handing a call over costs as much as a third of a resize
        def some(numbers: range) -> None:
            for i in numbers:
                one(i)

        list(self._pool.map(some, [range(first, count, self._threads) for first in range(min(count, self._threads))]))


def _resized(image: Any, size: tuple[int, int]) -> torch.Tensor:
    """Return uint8 [1, 3, height, width], channels last, of DALI's image uint8 [h, w, 3], which is not copied."""
    pixels = from_dlpack(image)[None].permute(0, 3, 1, 2)  # [None] last would not count as channels-last: slower
    return interpolate(pixels, size, mode="bilinear", antialias=True)
