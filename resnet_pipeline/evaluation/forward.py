"""Forward passes of bounded size over many views, the same to the last bit on any number of threads and processes.

On a CPU the order in which a convolution adds depends on the number of threads that share it. So each pass has one
thread, and as many passes run side by side as the process has threads. One process with eight threads computes the
same scores as eight workers with one each. Small passes lose nothing by it: their maps stay in the caches.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import torch
from torch import nn

from resnet_pipeline.parallel import work_alone

PASS_PIXELS = {"cpu": 2**18, "cuda": 2**24}
"""The most pixels in one pass of more than one image: five crops of 224 pixels on a CPU, 334 on a GPU.

A network needs some 300 bytes for each pixel of its input. More than ten crops are slower on a CPU (docs/LOG.md).
"""


class Passes:
    """A context manager that runs networks on a device, on a CPU with as many threads as PyTorch has here."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._threads = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Passes:
        if self._device.type == "cpu":
            self._pool = ThreadPoolExecutor(self._threads, initializer=work_alone)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self._threads)  # of threads to come, which PyTorch keeps beside each thread's own

    def average(self, net: nn.Module, views: torch.Tensor, *, mirror: bool) -> torch.Tensor:
        """Return the mean over views and, with ``mirror``, their mirror images of what a network says, on the CPU.

        ``views`` are uint8 [N, V, H, W, 3], the network maps [n, H, W, 3] to float [n, C], the mean is float [N, C].
        """
        samples, _, height, width = views.shape[:4]
        if mirror:
            views = torch.cat([views, views.flip(3)], dim=1)
        most = max(1, PASS_PIXELS[self._device.type] // (height * width))
        parts = torch.split(views.flatten(0, 1), most)
        run = map if self._pool is None else self._pool.map
        scores = torch.cat(list(run(lambda part: _forward(net, part), parts)))
        mean: torch.Tensor = scores.view(samples, views.shape[1], -1).mean(1)
        return mean.cpu()


@torch.inference_mode()
def _forward(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    scores: torch.Tensor = net(images)
    return scores
