"""The shards of a split as arrays of bytes: mapped where they lie, or fetched from a bucket ahead of their use."""

from __future__ import annotations

import contextvars
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from resnet_pipeline.data.order import Stretch
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import sha256_of
from resnet_pipeline.parallel import map_ahead, start_thread
from resnet_pipeline.settings import CACHE_LIMIT_VARIABLE
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.cache import Cache, CacheFolder, NoRoomError, Wanted

_log = logging.getLogger(__name__)

Mapped = npt.NDArray[np.uint8]
Reached = Callable[[int], None]
"""Called with the position that reading has reached."""

_AHEAD = 2  # stretches that are brought ahead of the one that is read
_AT_ONCE = 2  # shards: while one ends (the last blocks, the disk), another comes
_SECONDS_BETWEEN_TRIES = 0.2
_SECONDS_FOR_THE_LAST_BLOCKS = 10.0
_SECONDS_UNTIL_SAID = 30.0  # that reading waits for a shard before a line says so
_SECONDS_UNTIL_SAID_AGAIN = 600.0
_SECONDS_UNTIL_ROOM = 30.0  # before a full disk is tried again


class ShardFiles(Protocol):
    """Shards by their number in the split."""

    waited: float
    """Seconds that reading has waited for shards."""

    def mapped(self, number: int) -> Mapped:
        """Return the bytes of a shard, read-only; waits until it is there."""

    def part(self, number: int, start: int, length: int) -> Mapped:
        """Return some bytes of a shard, read-only; waits until they are there."""

    def following(self, stretches: Iterable[Stretch]) -> AbstractContextManager[Reached]:
        """Inside, bring the shards of these stretches ahead of reading, which tells the position it has reached."""

    def room_for(self, shards: int) -> int:
        """Return how many of that many shards may be there at once."""

    def require(self, shards: int) -> None:
        """Raise UserError if that many shards can't be there at once."""

    def remedy(self, number: int) -> str:
        """Return what to do about a shard that holds other bytes than were staged."""


class LocalShards:
    """Shards in a folder of this machine."""

    def __init__(self, folder: Path, shards: Sequence[Wanted], newest: float) -> None:
        self._folder, self._shards, self._newest = folder, list(shards), newest
        self._maps: dict[int, Mapped] = {}
        self.waited = 0.0

    def mapped(self, number: int) -> Mapped:
        """Return the bytes of a shard; one that is newer than the manifest is hashed first."""
        mapped = self._maps.get(number)
        if mapped is None:
            mapped = self._maps[number] = _map(self._checked(self._shards[number]))
        return mapped

    def part(self, number: int, start: int, length: int) -> Mapped:
        """Return some bytes of a shard."""
        return self.mapped(number)[start : start + length]

    def following(self, stretches: Iterable[Stretch]) -> AbstractContextManager[Reached]:
        """Nothing to do: all shards are here."""
        return nullcontext(lambda position: None)

    def room_for(self, shards: int) -> int:
        """All of them."""
        return shards

    def require(self, shards: int) -> None:
        """Nothing to refuse."""

    def remedy(self, number: int) -> str:
        """Return that the shard must be made again: it is the only one."""
        return _CHANGED

    def _checked(self, shard: Wanted) -> Path:
        path = self._folder / shard.name
        try:
            found = path.stat()
        except OSError as error:
            raise UserError(f"shard {path} can't be read ({error.strerror}); stage the dataset again") from None
        if found.st_size != shard.size:
            raise UserError(f"shard {path} has {found.st_size:,} bytes instead of {shard.size:,}; {_CHANGED}")
        if found.st_mtime > self._newest and sha256_of(path) != shard.sha256:
            raise UserError(f"shard {path} does not match its checksum in the manifest; {_CHANGED}")
        return path


class CachedShards:
    """Shards of a bucket, brought to the cache when they are needed and, in ``following``, before."""

    def __init__(self, storage: Storage, shards: Sequence[Wanted], folder: CacheFolder) -> None:
        self._storage, self._shards, self._cache = storage, list(shards), Cache(folder)
        self._largest = max((shard.size for shard in self._shards), default=1)
        self._held: dict[int, Mapped] = {}  # in the order in which they came
        self._bringing: set[int] = set()
        self._followers: list[_Follower] = []
        self._change = threading.Condition()
        self._full_until = self._said_full = -math.inf  # of time.monotonic()
        self._said_slow = False
        self.waited = 0.0

    def mapped(self, number: int) -> Mapped:
        """Return the bytes of a shard; waits for it, and counts the time."""
        mapped = self._held.get(number)
        if mapped is None:
            with self._waiting(f"shard {self._shards[number].name}"):
                self._let_the_oldest_go(self._shards[number].size)
                mapped = self.hold(number)
        assert mapped is not None  # without a condition it comes or raises
        return mapped

    def part(self, number: int, start: int, length: int) -> Mapped:
        """Return some bytes of a shard; while the cache's disk is full, those of a missing one come from the bucket."""
        now = time.monotonic()
        if number in self._held or now >= self._full_until:
            try:
                return self.mapped(number)[start : start + length]
            except NoRoomError as error:
                if now >= self._said_full + _SECONDS_UNTIL_SAID_AGAIN:
                    self._said_full = now
                    _log.warning("%s. Until there is room, images are read one by one from the bucket: slower", error)
                self._full_until = now + _SECONDS_UNTIL_ROOM
        with self._waiting("an image"):
            return np.frombuffer(self._storage.read(self._shards[number].name, start, length), np.uint8)

    @contextmanager
    def _waiting(self, what: str) -> Iterator[None]:
        """Count the time inside, and say it, once, when that is long; it is said again after something came in time."""

        def warn() -> None:
            if not self._said_slow:
                self._said_slow = True
                seconds = time.perf_counter() - start
                text = "%s: reading has waited %.0f s for %s: the server or the network is slow; it goes on with it"
                _log.warning(text, self._storage.url, seconds, what)

        start = time.perf_counter()
        timer = threading.Timer(_SECONDS_UNTIL_SAID, contextvars.copy_context().run, [warn])
        timer.daemon = True
        timer.start()
        try:
            yield
            self._said_slow = self._said_slow and time.perf_counter() - start >= _SECONDS_UNTIL_SAID
        finally:
            timer.cancel()
            self.waited += time.perf_counter() - start

    @contextmanager
    def following(self, stretches: Iterable[Stretch]) -> Iterator[Reached]:
        """Inside, a thread brings the shards of the next stretches; those of the passed ones are let go."""
        follower = _Follower(self, iter(stretches), self._change)
        self._followers.append(follower)
        follower.start()
        try:
            yield follower.reached
        finally:
            follower.close()
            self._followers.remove(follower)
            self.let_go(follower.wanted())

    def room_for(self, shards: int) -> int:
        """Return how many shards of the largest size the cache may hold."""
        limit = self._cache.folder.limit
        return shards if limit is None else min(shards, limit // self._largest)

    def require(self, shards: int) -> None:
        """Raise UserError if the cache may not hold so many shards; it says what would do."""
        room = self.room_for(shards)
        if room < shards:
            blocks = f", or train with --set order=block --set block_shards={room // 2}" if room > 1 else ""
            raise UserError(
                f"the order of training reads {shards} shards at a time, but the cache may hold {room}: set "
                f"{CACHE_LIMIT_VARIABLE} to {math.ceil(shards * self._largest / 1e6) / 1e3:g} or more{blocks}"
            )

    def remedy(self, number: int) -> str:
        """Return that the copy in the cache must go."""
        return f"remove its copy {self._cache.folder.path / self._shards[number].sha256}, which then is brought again"

    def hold(self, number: int, *, unless: Callable[[], bool] | None = None) -> Mapped | None:
        """Bring a shard and keep it; with ``unless`` in the background, as ``Cache.hold`` has it."""
        with self._change:
            while number in self._bringing:
                self._change.wait()
            if number in self._held:
                return self._held[number]
            self._bringing.add(number)
        mapped = None
        try:
            path = self._cache.hold(self._storage, self._shards[number], unless=unless)
            mapped = path if path is None else _map(path)
        finally:
            with self._change:
                self._bringing.remove(number)
                if mapped is not None:
                    self._held[number] = mapped
                self._change.notify_all()
        return mapped

    def let_go(self, numbers: Iterable[int]) -> None:
        """Let shards go that no follower wants; arrays of their bytes stay valid."""
        with self._change:
            wanted = set[int]().union(*(follower.wanted() for follower in self._followers))
            for number in set(numbers) - wanted:
                if self._held.pop(number, None) is not None:
                    self._cache.release(self._shards[number])
            self._change.notify_all()

    def _let_the_oldest_go(self, size: int) -> None:
        """Keep within the limit if shards are read that nobody announced."""
        limit = self._cache.folder.limit
        for number in list(self._held):
            if limit is None or sum(self._shards[held].size for held in self._held) + size <= limit:
                return
            self.let_go([number])


class _Follower:
    """A thread that brings what is needed next, no further ahead than ``_AHEAD`` stretches."""

    def __init__(self, files: CachedShards, stretches: Iterator[Stretch], change: threading.Condition) -> None:
        self._files, self._stretches, self._change = files, stretches, change
        self._window: deque[Stretch] = deque()  # the stretch that is read, and those ahead of it
        self._position, self._closed = 0, False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to bring shards."""
        self._thread = start_thread(self._run, name="shards-ahead")

    def wanted(self) -> set[int]:
        """Return the shards that are being read or will be next."""
        return {shard for stretch in self._window for shard in stretch.shards}

    def reached(self, position: int) -> None:
        """Note how far reading is; shards that lie behind are let go."""
        passed: list[Stretch] = []
        with self._change:
            self._position = max(position, self._position)
            while self._window and self._window[0].stop <= self._position:
                passed.append(self._window.popleft())
            self._change.notify_all()
        if passed:
            self._files.let_go(shard for stretch in passed for shard in stretch.shards)

    def close(self) -> None:
        """Stop; the download of a shard that is being fetched resumes next time."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread:
            self._thread.join(_SECONDS_FOR_THE_LAST_BLOCKS)

    def _run(self) -> None:
        for stretch in self._stretches:
            with self._change:
                while len(self._window) > _AHEAD and not self._closed:
                    self._change.wait()
                if self._closed:
                    return
                self._window.append(stretch)
            missing = list(stretch.shards)
            passed = partial(self._passed, stretch)
            while missing and not passed():
                before = len(missing)
                try:
                    # those that another process is bringing come last: two processes bring different shards
                    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="shards-ahead") as pool:
                        held = list(map_ahead(pool, partial(self._files.hold, unless=passed), missing, _AT_ONCE))
                except UserError:
                    break  # whoever needs the shard tries again, and tells what is wrong
                missing = [number for number, mapped in zip(missing, held, strict=True) if mapped is None]
                if passed():
                    self._files.let_go(stretch.shards)  # reading was faster, and nobody else lets them go
                if len(missing) == before:
                    with self._change:
                        self._change.wait(_SECONDS_BETWEEN_TRIES)

    def _passed(self, stretch: Stretch) -> bool:
        return self._closed or stretch.stop <= self._position


_CHANGED = "it changed after staging: stage the dataset again"


def _map(path: Path) -> Mapped:
    try:
        # a plain array over the mapping: slicing a memmap object costs several times as much
        return np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except (OSError, ValueError) as error:
        raise UserError(f"shard {path} can't be read ({error}); stage the dataset again") from None
