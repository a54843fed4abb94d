"""Where a run is kept besides this process's folder: its home, and a second place from which it resumes.

A home (`RESNET_PIPELINE_RUNS`) is where the run is: what is there counts, and it is finished when its result is there.
A mirror (`RESNET_PIPELINE_MIRROR`) may be away as long as it likes.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing, sha256_of
from resnet_pipeline.parallel import start_thread
from resnet_pipeline.records import RecordError, parse_record
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.training.checkpoint import (
    CheckpointNote,
    checkpoint_file,
    checkpoint_steps,
    newest_checkpoint,
    step_of,
)
from resnet_pipeline.training.metrics_log import last_step
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_FOLDER = "checkpoints/"


class Mirror:
    """Sends a run's checkpoints and metrics to a storage in a background thread, as often as it is told to.

    A storage that is away delays nothing: it is logged once, and the next checkpoint tries again. Checkpoints that the
    run no longer keeps are removed there too. ``on_sent`` is called, in the thread, after all was sent.

    Example: ``Mirror(run, storage_at("s3://bucket/runs/mine")).send_soon()``
    """

    def __init__(self, run: RunDirectory, storage: Storage, on_sent: Callable[[], None] = lambda: None) -> None:
        self._run, self._storage, self._on_sent = run, storage, on_sent
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._due = self._closed = self._away = False
        self._thread = start_thread(self._work, name="mirror")

    def send_soon(self) -> None:
        """Ask for the run's present state to be sent."""
        with self._changed:
            self._due = True
            self._changed.notify_all()

    def send_now(self) -> None:
        """Send the run's present state; UserError if that can't be done."""
        with self._sending:
            send(self._run, self._storage)

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
                self.send_now()
                self._on_sent()
                if self._away:
                    # a warning too: whoever saw the first one is to see this
                    _log.warning("%s answers again; checkpoints are there", self._storage.url)
                self._away = False
            except (UserError, OSError, ValueError) as error:
                if not self._away:
                    _log.warning("checkpoint not sent: %s; training goes on, the next one tries again", error)
                self._away = True


def send(run: RunDirectory, storage: Storage) -> None:
    """Bring the storage to the state of the run's directory; each checkpoint's JSON goes after it, the result last.

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
    delivery = [run.delivery_file] if run.signals.shared else []  # else whoever started the run sends it
    for file in (run.config_file, *delivery, run.metrics_file, run.weights_file, run.result_file):
        if file.exists():
            storage.write(file.name, file)
    for name in sorted(there - kept):  # x.json stands before x.pt
        storage.delete(name)


def keep(run: RunDirectory, *files: Path) -> None:
    """Send files of the run to its home, if it has one: those that whoever started the run has written.

    Example: ``keep(run, run.delivery_file)``
    """
    for file in files if run.home else ():
        if run.home and file.is_file():
            run.home.write(file.relative_to(run.path).as_posix(), file)


def bring(run: RunDirectory, *files: Path) -> None:
    """Bring files of the run from its home, if it has one: those that are there and not here.

    Example: ``bring(run, run.path / "proposals/train.npy")``
    """
    for file in files if run.home else ():
        name = file.relative_to(run.path).as_posix()
        if run.home and not file.exists() and run.home.stat(name):
            _bring(run.home, name, file)


def adopt(run: RunDirectory, *, weights: bool = True) -> None:
    """Bring what the run's home has and its copy here lacks, but for checkpoints; nothing if it has no home.

    Metrics come anew if they have come further there, where another machine may have written them since. With
    ``weights`` those of a finished run come too.

    Example: ``adopt(RunDirectory.of(Workspace.of(), name)).result()``
    """
    if run.home is None:
        return
    names = [stored.name for stored in run.home.files()]
    finished = run.result_file.exists()
    for name in sorted(names, key=lambda name: name == run.result_file.name):  # the result last: it says all is here
        file = run.path / name
        if "/" in name or name.startswith("."):
            continue
        if file == run.metrics_file and not finished:
            _bring_longer(run.home, file)
        elif not file.exists() and (weights or file != run.weights_file):
            _bring(run.home, name, file)


def adopt_all(workspace: Workspace) -> None:
    """Bring what the homes of all runs have, but for weights and checkpoints; nothing if they have none.

    Example: ``adopt_all(Workspace.of())``
    """
    if workspace.home:
        for stored in storage_at(workspace.home).files():
            name, _, file = stored.name.partition("/")
            if file == "config.json":
                adopt(RunDirectory.of(workspace, name), weights=False)


def fetch_newer(run: RunDirectory, storage: Storage, *, history: bool = True) -> None:
    """Bring the newest good checkpoint of a storage if it is newer than all here.

    With ``history`` its metrics come with it, and the checkpoint with the lowest error. Logs what was fetched, and a
    warning for each checkpoint that is damaged there.

    Example: ``fetch_newer(run, storage_at("s3://bucket/runs/mine"))``
    """
    newest, _ = newest_checkpoint(run.checkpoints)
    here = step_of(newest) if newest else -1
    there = list(_noted(storage))
    for noted, note in there:
        if noted.step <= here:
            break
        if not _checkpoint_fetched(run, storage, noted, note):
            _log.warning("%s/%s does not match its checkpoint; trying the one before", storage.url, _note_name(noted))
            continue
        delivery = [run.delivery_file] if run.signals.shared else []
        for file in (*delivery, run.metrics_file) if history else ():
            if storage.stat(file.name):
                _bring(storage, file.name, file)
        _log.info("fetched the checkpoint of step %d from %s", noted.step, storage.url)
        here = noted.step
        break
    tested = [found for found in there if found[0].top1 is not None and found[0].step <= here]
    best = min(tested, key=lambda found: (found[0].top1, found[0].step), default=None)
    if history and best and best[0].step not in checkpoint_steps(run.checkpoints):
        _checkpoint_fetched(run, storage, *best)  # else it would be removed there, as what is not here any more


def fetch_checkpoint(run: RunDirectory, storage: Storage, step: int) -> None:
    """Bring the checkpoint of a step from a storage, if it is there and good; newer ones may be here.

    Example: ``fetch_checkpoint(run, storage_at("s3://bucket/runs/mine"), 5000)``
    """
    for noted, note in _noted(storage):
        if noted.step == step:
            _checkpoint_fetched(run, storage, noted, note)


def _noted(storage: Storage) -> Iterator[tuple[CheckpointNote, bytes]]:
    """Yield what the notes of a storage's checkpoints say, and their bytes, the newest first."""
    names = [stored.name for stored in storage.files(_FOLDER) if stored.name.endswith(".json")]
    for name in sorted(names, reverse=True):
        note = storage.read(name)
        try:
            yield parse_record(CheckpointNote, note, name=f"{storage.url}/{name}"), note
        except RecordError as error:
            _log.warning("%s; trying the one before", error)


def _note_name(noted: CheckpointNote) -> str:
    return _FOLDER + checkpoint_file(Path(), noted.step).with_suffix(".json").name


def _checkpoint_fetched(run: RunDirectory, storage: Storage, noted: CheckpointNote, note: bytes) -> bool:
    """Bring a checkpoint and its note; False, and nothing is written, if it is missing or damaged."""
    path = checkpoint_file(run.checkpoints, noted.step)
    if not _fetched(storage, _FOLDER + path.name, path, noted.sha256):
        return False
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_bytes(note)
    return True


def _bring(storage: Storage, name: str, path: Path) -> None:
    with replacing(path) as temporary, storage.open(name) as source, temporary.open("wb") as target:
        shutil.copyfileobj(source, target, 2**20)


def _bring_longer(storage: Storage, path: Path) -> None:
    """Bring metrics of later steps than those that are here."""
    with suppress(_OtherContentError), replacing(path) as temporary:
        with storage.open(path.name) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, 2**20)
        if path.exists() and last_step(temporary) <= last_step(path):
            raise _OtherContentError


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
