"""What Ray Train's workers are ordered to train. Its controller reads this too, and need not import PyTorch for it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.records import read_record
from resnet_pipeline.training.signals import Signals

OPEN = "open"
"""The signal that there may be more orders."""

SECONDS_BETWEEN_CHECKS = 0.2
"""Between looks for a signal: a file, which may lie on a network drive, or a question to an actor."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A run's directory and home, the address of its dataset, its mirror, and if it is tested aside."""

    run: str
    home: str | None
    dataset: str
    mirror: str | None
    aside: bool = False


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a worker knows from its start: where its orders are, the root, its CPU threads, the timeout in seconds."""

    orders: Signals
    root: Path
    threads: int
    timeout: float


def next_order(orders: Signals, number: int) -> Order | None:
    """Wait for an order; None when there will be no more, also when the folder is gone.

    Example: ``next_order(standing.orders, 1)``
    """
    while orders.get(OPEN) is not None:
        if (text := orders.get(f"order-{number}.json")) is not None:
            return read_record(Order, json.loads(text))
        time.sleep(SECONDS_BETWEEN_CHECKS / 4)
    return None
