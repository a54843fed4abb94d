"""Work ahead of its reader: calls in order with some under way, an iterator in a thread, threads of one core each."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

S = TypeVar("S")
T = TypeVar("T")


def cores() -> int:
    """Return how many cores this process may use: under taskset, Slurm or a container's limit fewer than there are.

    >>> cores() >= 1
    True
    """
    from joblib import cpu_count  # a fifth of a second that most commands need not pay

    return int(cpu_count())


def map_ahead(pool: ThreadPoolExecutor, call: Callable[[S], T], items: Iterable[S], ahead: int) -> Iterator[T]:
    """Yield what ``call`` returns for each item, in order, with at most ``ahead`` calls begun and not yet yielded.

    So no more results are held than that. At the end, however it comes, calls that have not begun never do. They run in
    the caller's context, as `start_thread`'s do.

    >>> with ThreadPoolExecutor(2) as pool:
    ...     list(map_ahead(pool, str, range(3), 2))
    ['0', '1', '2']
    """
    pending: deque[Future[T]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(contextvars.copy_context().run, call, item))
            if len(pending) == ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def start_thread(work: Callable[[], object], *, name: str) -> threading.Thread:
    """Start a daemon thread in the caller's context: its log lines carry the caller's run, rank, step and flow run."""
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name=name, daemon=True)
    thread.start()
    return thread


@contextmanager
def repeated(work: Callable[[], object], *, every: float) -> Iterator[None]:
    """Inside, a thread of its own calls ``work`` every so many seconds; it has ended when this returns."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every):
            work()

    thread = start_thread(repeat, name="repeated")
    try:
        yield
    finally:
        ended.set()
        thread.join()


def work_alone() -> None:
    """Let the thread that calls this compute alone in PyTorch: a pool's initializer."""
    import torch  # staging's processes start fast without it

    torch.get_num_threads()  # a thread's first look would set its number again, to the last one that any thread set
    torch.set_num_threads(1)


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
