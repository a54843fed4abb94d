"""An attempt at a run: whose the run is, what it resumes from, and everything that it writes into the run."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import IO

from resnet_pipeline.errors import UnavailableError, UserError
from resnet_pipeline.logs import at_step, current_context
from resnet_pipeline.models.weights import save_weights, weights_sha256
from resnet_pipeline.settings import cleaned
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.training.checkpoint import (
    Checkpoint,
    checkpoint_file,
    checkpoint_steps,
    newest_checkpoint,
    read_checkpoint,
    step_of,
)
from resnet_pipeline.training.checkpoint_writer import CheckpointWriter
from resnet_pipeline.training.context import Context
from resnet_pipeline.training.distributed import from_rank_zero
from resnet_pipeline.training.metrics_log import Entry, FinishEntry, MetricsLog, NoteEntry, ResumeEntry
from resnet_pipeline.training.mirror import Mirror, fetch_checkpoint, fetch_newer, send
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.signals import OWNER, SAVED
from resnet_pipeline.training.state import TrainingState

_log = logging.getLogger(__name__)

_SECONDS_FOR_A_LOCK = 5.0


class TakenOverError(UserError):
    """Another process has started to train this run; this one must not write into it any more."""


class Owner:
    """An attempt's claim of a run, which belongs to the last one that was started. One on a lost node may still run."""

    def __init__(self, run: RunDirectory, name: str) -> None:
        self._run, self._name = run, name

    @classmethod
    def claim(cls, run: RunDirectory) -> str:
        """Make the run this process's; return the name of the claim."""
        name = f"{os.getpid()}-{time.time_ns()}"
        with run.owner_file.open("a+") as file, _locked(file, fcntl.LOCK_EX):
            file.truncate(0)
            file.write(name)
            file.flush()
        if not run.signals.shared:
            run.signals.put(OWNER, name)
        return name

    @classmethod
    def of(cls, run: RunDirectory) -> str:
        """Return the name of the run's last claim, an empty text if there was none."""
        return run.signals.get(OWNER) or ""

    @classmethod
    def here(cls, run: RunDirectory) -> str:
        """Return the name of the last claim that this machine knows of."""
        return run.owner_file.read_text() if run.owner_file.exists() else ""

    def check(self) -> None:
        """Raise TakenOverError if a later attempt trains this run."""
        with self.staying():
            pass

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Let no later attempt claim the run while inside, which must be short; TakenOverError if one has."""
        run = self._run
        with run.owner_file.open() as file, _locked(file, fcntl.LOCK_SH):
            if file.read() != self._name or not (run.signals.shared or run.signals.get(OWNER) == self._name):
                raise TakenOverError(f"{run.path} is trained by another process now; this one ends")
            yield


@contextmanager
def _locked(file: IO[str], kind: int) -> Iterator[None]:
    """Have the kernel's lock on a file while inside, or go without if another has it for too long, or there is none."""
    deadline = time.monotonic() + _SECONDS_FOR_A_LOCK
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:  # a process that was stopped in there must not stop all later ones
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        except OSError:
            break
        else:
            break
    yield  # closing the file ends the lock


_claims: dict[str, Owner] = {}
"""This process's last claim of each run, by the run's name."""


@contextmanager
def noting(run: RunDirectory) -> Iterator[None]:
    """Inside, what this process warns of in the run's `log_context` is in the run's metrics too, as lines ``note``.

    There whoever started the run reads it: the process may be on another machine.

    Example: ``with log_context(run=run.name), noting(run): _log.warning("no room")``
    """
    logger, handler = logging.getLogger("resnet_pipeline"), _Notes(run)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Notes(logging.Handler):
    def __init__(self, run: RunDirectory) -> None:
        super().__init__(logging.WARNING)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        here = current_context()
        if here.run != self._run.name:
            return
        claim = _claims.get(self._run.name)
        try:
            with claim.staying() if claim else nullcontext():  # before its claim a process is no late one
                log = MetricsLog(self._run.metrics_file, self._run.signals.tell)
                log.append(here.step or 0, NoteEntry(text=cleaned(record.getMessage())))
                log.close()
        except (TakenOverError, UnavailableError):
            pass  # what a later attempt trains is no concern of this one's
        except Exception:
            self.handleError(record)


def fetch(run: RunDirectory, mirror: Storage) -> None:
    """Bring what the mirror has and this machine has not; a mirror that is away is logged, and nothing more."""
    try:
        fetch_newer(run, mirror)
    except UserError as error:
        _log.warning("nothing fetched: %s", error)


class Attempt:
    """An attempt at a run in one of its processes: brings the newest checkpoint into ``state``, and writes for rank 0.

    On the other ranks nothing is written. A checkpoint is looked for in the run, in its home, and in the ``mirror`` if
    there is one. Raises CheckpointError if it is of another run or network, UserError if the home can't be read.
    """

    def __init__(self, run: RunDirectory, state: TrainingState, context: Context, mirror: Storage | None) -> None:
        self._run, self._state = run, state
        self._log: MetricsLog | None = None
        self._home: Mirror | None = None
        self._mirrors: list[Mirror] = []
        self._writer: CheckpointWriter | None = None
        leads = context.rank == 0
        name = Owner.claim(run) if leads else ""
        if leads and run.home:
            fetch_newer(run, run.home)
        if leads and mirror:
            fetch(run, mirror)
        # all ranks have rank 0's claim, since any may note what it warns of
        name = from_rank_zero(name, context.world_size)
        if not leads and Owner.here(run) != name:
            run.owner_file.write_text(name)  # on a machine of its own
        self._owner = _claims[run.name] = Owner(run, name)
        problems = self._resume(context)
        if leads:
            self._begin_to_write(context, problems, mirror)

    def _resume(self, context: Context) -> list[str]:
        """Take up the newest good checkpoint, if there is one; return a line for each damaged newer one."""
        run = self._run
        own: tuple[int | None, list[str]] = None, []
        if context.rank == 0:
            newest, found = newest_checkpoint(run.checkpoints, run=self._state.run)
            own = step_of(newest) if newest else None, found
            if run.home and newest and context.world_size > 1:
                send(run, run.home)  # from where the others have it
        step, problems = from_rank_zero(own, context.world_size)
        if step is not None:
            path = checkpoint_file(run.checkpoints, step)
            if run.home and context.rank and not path.exists():
                # this machine may have later ones, which were not sent yet when rank 0's was lost
                fetch_checkpoint(run, run.home, step)
            self._state.load_state_dict(read_checkpoint(path, run=self._state.run))
            at_step(self._state.step)
        elif self._run.config().model.initial_weights is not None:
            self._state.begin_with(self._run.initial_weights_file)
        lines: list[str] = problems
        return lines

    def _begin_to_write(self, context: Context, problems: list[str], mirror: Storage | None) -> None:
        run = self._run
        self._log = MetricsLog(run.metrics_file, run.signals.tell)
        self.append(ResumeEntry(workers=context.world_size))
        for problem in problems:
            _log.warning("%s", problem)
        self._home = Mirror(run, run.home, self._say_saved) if run.home else None
        self._mirrors = [*filter(None, [self._home]), *([Mirror(run, mirror)] if mirror else [])]
        self._writer = CheckpointWriter(run.checkpoints, on_written=self._send_soon)

    def _send_soon(self) -> None:
        for mirror in self._mirrors:
            mirror.send_soon()

    def _say_saved(self) -> None:
        if not self._run.signals.shared:
            self._run.signals.put(SAVED, str(max(checkpoint_steps(self._run.checkpoints), default=0)))

    def check_owner(self) -> None:
        """Raise TakenOverError if a later attempt trains this run."""
        if self._log:
            self._owner.check()

    def append(self, entry: Entry, *, step: int | None = None) -> None:
        """Append an entry to the run's metrics, of the state's step; TakenOverError if a later attempt trains the run.

        With ``step`` it is of that one.
        """
        if self._log:
            with self._owner.staying():
                self._log.append(self._state.step if step is None else step, entry)

    def save(self, checkpoint: Checkpoint, *, val_error: float | None) -> int:
        """Write a checkpoint behind the training's back; return the bytes of the copy that was made for it."""
        return self._writer.write(checkpoint, val_error=val_error) if self._writer else 0

    def wait(self) -> None:
        """Wait until the last checkpoint is written; UserError if it could not be."""
        if self._writer:
            self._writer.wait()

    def finish(self) -> None:
        """Write the finished network's weights, then the run's result; UserError if there is no room for them.

        If the run has a home they are there first: the run is finished when it says so.
        """
        if self._log is None:
            return
        run, network = self._run, self._state.network
        digest = weights_sha256(network)
        metadata = {"recipe": run.config().recipe, "run": run.name, "weights_sha256": digest}
        try:
            save_weights(network, run.weights_file, metadata)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{run.weights_file} can't be written: {reason}; make room and start the same run again"
            ) from error
        self.append(FinishEntry(seconds=self._state.seconds))
        result = self._state.result(digest)
        if self._home and run.home:
            self.wait()
            self._home.send_now()
            run.home.write(run.result_file.name, result.text().encode())
        result.write(run.result_file)

    def close(self) -> None:
        """Wait for the checkpoint writer and what sends it, and close the metrics file."""
        if self._writer:
            self._writer.close()
        self._send_soon()
        for mirror in self._mirrors:
            mirror.close()
        if self._log:
            self._log.close()
