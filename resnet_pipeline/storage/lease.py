"""One process at a time where the system has no locks: a lease, an object written on a condition and kept fresh.

Whoever holds it renews it every few seconds. A process of this machine that has ended holds nothing any more; one of
another machine holds it until it has not been renewed for a while.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import psutil

from resnet_pipeline.errors import UserError
from resnet_pipeline.parallel import repeated
from resnet_pipeline.records import RecordError, plain_record, read_record
from resnet_pipeline.storage.base import HeldError, Storage

_log = logging.getLogger(__name__)

BEAT = 10.0
"""Seconds between two renewals."""
EXPIRES = 3 * BEAT
"""Seconds after which a lease that nobody renews is free."""


class ConditionalStorage(Storage, Protocol):
    """A storage that can write on a condition."""

    def write_if(self, name: str, content: bytes, version: str | None) -> str | None:
        """Write a file if its version is this one, None: if there is none; return the new version, None if it is not.

        A server that knows no conditions writes whatever is there.
        """


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease: a name for this once, machine, process id, start in Unix time; ``beat`` counts renewals."""

    token: str
    machine: str
    pid: int
    started: float
    beat: int = 0


@contextmanager
def held(storage: ConditionalStorage, name: str) -> Iterator[Callable[[], None]]:
    """Hold a lease while inside; yields what raises UserError when it was lost. HeldError if another holds it."""
    lease = _Lease(storage, name)
    lease.take()
    try:
        with repeated(lease.beat, every=BEAT):
            yield lease.check
    finally:
        lease.give_back()


class _Lease:
    def __init__(self, storage: ConditionalStorage, name: str) -> None:
        self._storage, self._name = storage, name
        started = psutil.Process().create_time()
        self._me = Holder(token=uuid.uuid4().hex, machine=_machine(), pid=os.getpid(), started=started)
        self._lost = False

    def take(self) -> None:
        """Write the lease, if none is there or its holder has ended; HeldError if it lives."""
        while True:
            free = self._free_version()
            # read back: on a server without conditions whoever wrote last has it
            if self._storage.write_if(self._name, self._content(), free) is not None and self._is_mine():
                return

    def check(self) -> None:
        """Raise UserError if another process has the lease: this one was stopped, or cut off, for too long."""
        if self._lost or not self._is_mine():
            raise UserError(f"another process took {self._storage.url} over; this one ends")

    def beat(self) -> None:
        """Renew the lease; without a connection the next time may do."""
        with suppress(UserError):
            self._renew()

    def give_back(self) -> None:
        """Remove the lease, if it is still this one's."""
        with suppress(UserError):
            if not self._lost and self._is_mine():
                self._storage.delete(self._name)

    def _renew(self) -> None:
        if self._lost:
            return
        self._me = replace(self._me, beat=self._me.beat + 1)
        found = self._storage.stat(self._name)
        if found is None or not self._is_mine():
            self._lost = True
        else:
            self._lost = self._storage.write_if(self._name, self._content(), found.version) is None

    def _free_version(self) -> str | None:
        """Return the version of a lease that is free, None if there is none any more; HeldError if its holder lives."""
        found = self._storage.stat(self._name)
        if found is None:
            return None
        holder = self._holder()
        lives = None if holder is None else _lives(holder)
        if lives is None:
            _log.info("%s: waiting up to %.0f s for another process, if it lives", self._storage.url, EXPIRES)
            deadline = time.monotonic() + EXPIRES
            while (now := self._storage.stat(self._name)) == found and time.monotonic() < deadline:
                time.sleep(BEAT / 10)
            if now is None:
                return None
            lives = now != found
        if lives:
            who = f"process {holder.pid} of {holder.machine.partition(' ')[0]}" if holder else "another process"
            raise HeldError(f"{self._storage.url} is in use by {who}")
        return found.version

    def _content(self) -> bytes:
        return json.dumps(plain_record(self._me)).encode()

    def _is_mine(self) -> bool:
        holder = self._holder()
        return holder is not None and holder.token == self._me.token

    def _holder(self) -> Holder | None:
        """Return who holds the lease, None if that can't be read."""
        if self._storage.stat(self._name) is None:
            return None
        try:
            return read_record(Holder, json.loads(self._storage.read(self._name)))
        except (ValueError, RecursionError, RecordError):
            return None


def _machine() -> str:
    """Return a name for those processes whose ids this one sees: the machine, and its container."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def _lives(holder: Holder) -> bool | None:
    """Return whether a process of this machine lives, None for one of another."""
    if holder.machine != _machine():
        return None
    try:
        process = psutil.Process(holder.pid)
        same = abs(process.create_time() - holder.started) < 1
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
