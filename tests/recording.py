"""A display that keeps what bars showed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from resnet_pipeline.progress import Bar


class Shown(NamedTuple):
    """What a bar showed at one time."""

    title: str
    reached: int
    total: int | None
    unit: str
    detail: str


class Recording:
    """Keeps what every bar showed, from its beginning on; ``on_update`` is called with each, and may raise."""

    def __init__(self, on_update: Callable[[Shown], None] = lambda shown: None) -> None:
        self.shown: list[Shown] = []
        self.before: dict[str, int] = {}
        self.ended: list[str] = []
        self._on_update = on_update

    def begin(self, bar: Bar) -> None:
        self.before[bar.title] = bar.before
        self._keep(bar)

    def update(self, bar: Bar) -> None:
        self._on_update(self._keep(bar))

    def end(self, bar: Bar) -> None:
        self.ended.append(bar.title)

    def _keep(self, bar: Bar) -> Shown:
        shown = Shown(bar.title, bar.reached, bar.total, bar.unit, bar.detail)
        self.shown.append(shown)
        return shown
