"""An iterator that is run in a thread, some items ahead of its reader."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Yields what ``items`` yields, computed in a thread at most ``depth`` items ahead; an error comes in its place."""

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items = items
        self._ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="batches-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._closed.is_set():
            raise StopIteration
        item, error = self._ready.get()
        if error is not None:
            self.close()
            raise error
        assert item is not None
        return item

    def close(self) -> None:
        """End the thread; no more items come. What it is computing now is finished and dropped."""
        self._closed.set()
        while self._thread.is_alive():
            try:  # the thread may be waiting for a free place
                self._ready.get(timeout=0.01)
            except queue.Empty:
                continue

    def _work(self) -> None:
        error: BaseException = StopIteration()
        try:
            for item in self._items:
                self._ready.put((item, None))
                if self._closed.is_set():
                    return
        except BaseException as raised:  # whatever it is, the reader gets it
            error = raised
        self._ready.put((None, error))
