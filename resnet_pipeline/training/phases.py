"""The batches of a run whose crops grow: one loader after another, each for crops of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from resnet_pipeline.config import AugmentConfig, RunConfig
from resnet_pipeline.data.loaders import Batch, Loader


class OpenLoader(Protocol):
    """Opens the loader of the steps from ``start_step`` on."""

    def __call__(self, start_step: int, steps: int, augment: AugmentConfig) -> Loader[Batch]:
        """Return the loader."""


def phases(config: RunConfig, start_step: int, steps: int) -> Iterator[tuple[int, int]]:
    """Yield (first step, steps) of the stretches of equal crop size from ``start_step`` on, ``steps`` in all.

    >>> from resnet_pipeline.recipes import get_recipe
    >>> list(phases(get_recipe("digits/resnet8"), 0, 240))
    [(0, 240)]
    """
    first, end = start_step, start_step + steps
    while first < end:
        # sizes change a few times in a run at most; without growth never
        size, step = config.crop_at(first), end if config.growth.first == 0 else first + 1
        while step < end and config.crop_at(step) == size:
            step += 1
        yield first, step - first
        first = step


class PhasedBatches:
    """An iterator over all micro-batches of some steps; a context manager that closes the loader at work."""

    def __init__(self, config: RunConfig, start_step: int, steps: int, open_loader: OpenLoader) -> None:
        self._loader: Loader[Batch] | None = None
        self._batches = self._run(config, start_step, steps, open_loader)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def __enter__(self) -> PhasedBatches:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._loader is not None:
            self._loader.close()

    def _run(
        self, config: RunConfig, start_step: int, steps: int, open_loader: Callable[..., Loader[Batch]]
    ) -> Iterator[Batch]:
        for first, count in phases(config, start_step, steps):
            self._loader = open_loader(first, count, config.augment_at(first))
            yield from self._loader
            self._loader.close()
