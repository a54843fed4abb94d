"""Ctrl-C and SIGTERM: the first one lets a run save its state and stop at its next step.

In a process that trains, the loop asks what is yielded (``Context.should_stop``). A driver of Ray's workers tells them
(`signals.STOP`), and their contexts look (``adapters.ray.train``).
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_log = logging.getLogger(__name__)


@contextmanager
def stop_on_signals(*, loud: bool = True, leave_at_once: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM or SIGINT came since; outside the main thread none can be caught.

    The first one is logged if ``loud``. With ``leave_at_once`` a second Ctrl-C raises
    KeyboardInterrupt; SIGTERM may come as often as its sender likes.

    Example: ``with stop_on_signals() as stop: train(run, dataset, LocalContext(stop=stop))``
    """
    signalled = threading.Event()
    interrupts = 0
    if threading.current_thread() is not threading.main_thread():
        yield signalled.is_set
        return

    def tell(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if leave_at_once and interrupts > 1:
            raise KeyboardInterrupt
        if loud and not signalled.is_set():
            again = " (Ctrl-C again to leave at once)" if leave_at_once else ""
            _log.info("stopping: saving the state at the next step%s", again)
        signalled.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signalled.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
