"""A second home for checkpoints: a bucket or another disk, from which a run resumes if this machine is lost."""

from __future__ import annotations

import logging
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing, sha256_of
from resnet_pipeline.parallel import start_thread
from resnet_pipeline.records import RecordError, parse_record
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.training.checkpoint import CheckpointNote, checkpoint_file, checkpoint_steps, newest_checkpoint
from resnet_pipeline.training.run_directory import RunDirectory

_log = logging.getLogger(__name__)

_FOLDER = "checkpoints/"


class Mirror:
    """Sends a run's checkpoints and metrics to a storage in a background thread, as often as it is told to.

    A storage that is away delays nothing: it is logged once, and the next checkpoint tries again. Checkpoints that the
    run no longer keeps are removed there too.

    Example: ``Mirror(run, storage_at("s3://bucket/runs/mine")).send_soon()``
    """

    def __init__(self, run: RunDirectory, storage: Storage) -> None:
        self._run, self._storage = run, storage
        self._changed = threading.Condition()
        self._due = self._closed = self._away = False
        self._thread = start_thread(self._work, name="mirror")

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
            _log.warning("%s did not take the last checkpoint; it is in %s", self._storage.url, self._run.checkpoints)

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
                    # a warning too: whoever saw the first one is to see this
                    _log.warning("%s answers again; checkpoints are there", self._storage.url)
                self._away = False
            except (UserError, OSError, ValueError) as error:
                if not self._away:
                    _log.warning("checkpoint not sent: %s; training goes on, the next one tries again", error)
                self._away = True


def send(run: RunDirectory, storage: Storage) -> None:
    """Bring the storage to the state of the run's directory; each checkpoint's JSON goes last.

    Example: ``send(run, storage_at("s3://bucket/runs/mine"))``
    """
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


def fetch_newer(run: RunDirectory, storage: Storage) -> None:
    """Bring the newest good checkpoint of a storage, and its metrics, if it is newer than all here.

    Logs what was fetched, and a warning for each checkpoint that is damaged there.

    Example: ``fetch_newer(run, storage_at("s3://bucket/runs/mine"))``
    """
    newest, _ = newest_checkpoint(run.checkpoints)
    here = int(newest.stem.removeprefix("step-")) if newest else -1
    notes = [stored.name for stored in storage.files(_FOLDER) if stored.name.endswith(".json")]
    for name in sorted(notes, reverse=True):
        note = storage.read(name)
        try:
            noted = parse_record(CheckpointNote, note, name=f"{storage.url}/{name}")
        except RecordError as error:
            _log.warning("%s; trying the one before", error)
            continue
        if noted.step <= here:
            break
        path = checkpoint_file(run.checkpoints, noted.step)
        if not _fetched(storage, _FOLDER + path.name, path, noted.sha256):
            _log.warning("%s/%s does not match its checkpoint; trying the one before", storage.url, name)
            continue
        for file in (run.delivery_file, run.metrics_file):
            if storage.stat(file.name):
                with replacing(file) as temporary:
                    temporary.write_bytes(storage.read(file.name))
        with replacing(path.with_suffix(".json")) as temporary:
            temporary.write_bytes(note)
        _log.info("fetched the checkpoint of step %d from %s", noted.step, storage.url)
        break


def _fetched(storage: Storage, name: str, path: Path, digest: str) -> bool:
    """Copy a file from the storage; False, and nothing written, if it is missing or its SHA-256 is another."""
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


def mirror_of(run: RunDirectory, address: str | None) -> Storage | None:
    """Return where a run's checkpoints are kept a second time: a folder of its own below the address, or nowhere.

    Example: ``mirror_of(run, "s3://bucket/mirror")``
    """
    return storage_at(f"{address.rstrip('/')}/{run.name}") if address else None
