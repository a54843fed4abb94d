"""A second home for checkpoints: a bucket or another disk, from which a run goes on where this machine is lost."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing, sha256_of
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.training.checkpoint import checkpoint_file, checkpoint_steps, newest_checkpoint
from resnet_pipeline.training.run_directory import RunDirectory

_FOLDER = "checkpoints/"


class Mirror:
    """Sends a run's checkpoints and metrics to a storage in a background thread, as often as it is told to.

    A storage that is away delays nothing: it is said once, and the next checkpoint tries again. Checkpoints that the
    run no longer keeps are removed there too.
    """

    def __init__(self, run: RunDirectory, storage: Storage, *, say: Callable[[str], None] = print) -> None:
        self._run, self._storage, self._say = run, storage, say
        self._changed = threading.Condition()
        self._due = self._closed = self._away = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def send_soon(self) -> None:
        """Ask for the run's present state to be sent."""
        with self._changed:
            self._due = True
            self._changed.notify_all()

    def close(self, timeout: float = 120.0) -> None:
        """Wait until all is sent, at most ``timeout`` seconds, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive() or self._away:
            self._say(f"{self._storage.url} did not take the last checkpoint; it is in {self._run.checkpoints}")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._due or self._closed)
                if not self._due:
                    return
                self._due = False
            try:
                send(self._run, self._storage)
                if self._away:
                    self._say(f"{self._storage.url} answers again; checkpoints are there")
                self._away = False
            except (UserError, OSError, ValueError) as error:
                if not self._away:
                    self._say(f"checkpoint not sent: {error}; training goes on, the next one tries again")
                self._away = True


def send(run: RunDirectory, storage: Storage) -> None:
    """Bring the storage to the state of the run's directory; each checkpoint's JSON goes last."""
    there = {stored.name for stored in storage.files(_FOLDER)}
    kept = set()
    for step in checkpoint_steps(run.checkpoints):
        path = checkpoint_file(run.checkpoints, step)
        name, note_name = _FOLDER + path.name, _FOLDER + path.with_suffix(".json").name
        kept |= {name, note_name}
        note = path.with_suffix(".json").read_bytes()
        if note_name in there and storage.read(note_name) == note:
            continue
        storage.delete(note_name)
        storage.write(name, path)
        storage.write(note_name, note)
    # how far the metrics were delivered goes before the metrics, so that it never points beyond them
    for file in (run.config_file, run.delivery_file, run.metrics_file):
        if file.exists():
            storage.write(file.name, file)
    for name in sorted(there - kept):  # x.json stands before x.pt
        storage.delete(name)


def fetch_newer(run: RunDirectory, storage: Storage) -> list[str]:
    """Bring the newest good checkpoint of a storage, and its metrics, where it is newer than all here.

    Returns a line for what was fetched and for each checkpoint that is damaged there.
    """
    newest, _ = newest_checkpoint(run.checkpoints)
    here = int(newest.stem.removeprefix("step-")) if newest else -1
    said: list[str] = []
    notes = [stored.name for stored in storage.files(_FOLDER) if stored.name.endswith(".json")]
    for name in sorted(notes, reverse=True):
        note = storage.read(name)
        try:
            noted = json.loads(note)
            path, digest = checkpoint_file(run.checkpoints, noted["step"]), noted["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            said.append(f"{storage.url}/{name} can't be read ({error}); trying the one before")
            continue
        if noted["step"] <= here:
            break
        if not _fetched(storage, _FOLDER + path.name, path, digest):
            said.append(f"{storage.url}/{name} does not match its checkpoint; trying the one before")
            continue
        for file in (run.delivery_file, run.metrics_file):
            if storage.stat(file.name):
                with replacing(file) as temporary:
                    temporary.write_bytes(storage.read(file.name))
        with replacing(path.with_suffix(".json")) as temporary:
            temporary.write_bytes(note)
        said.append(f"fetched the checkpoint of step {noted['step']} from {storage.url}")
        break
    return said


def _fetched(storage: Storage, name: str, path: Path, digest: str) -> bool:
    """Copy a file from the storage; False, and nothing written, where it is missing or its SHA-256 is another."""
    if storage.stat(name) is None:
        return False
    with suppress(_OtherContentError), replacing(path) as temporary:
        with storage.open(name) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
        if sha256_of(temporary) != digest:
            raise _OtherContentError
        return True
    return False


class _OtherContentError(Exception):
    pass
