"""Checkpoints written in the background, and which of them are kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.parallel import start_thread
from resnet_pipeline.records import RecordError
from resnet_pipeline.training.checkpoint import (
    Checkpoint,
    checkpoint_file,
    checkpoint_steps,
    read_note,
    remove_checkpoint,
    remove_leftovers,
    write_checkpoint,
)

_log = logging.getLogger(__name__)

_MOST_FAILURES = 3


class CheckpointWriter:
    """Writes checkpoints in a background thread; keeps the newest ``keep`` and the one with the lowest error.

    Training waits for a copy of the tensors, on their device, and for nothing else. At most two copies are held: the
    one that is being written, and one that waits; if a third comes, it takes the waiting one's place. A checkpoint
    that can't be written (no space) is logged and training goes on; after three in a row `write` raises UserError. The
    earlier ones stay. ``on_written`` is called, in the thread, after each.

    Example: ``CheckpointWriter(run.checkpoints).write(state.state_dict(), val_error=12.5)``
    """

    def __init__(self, folder: Path, *, keep: int = 2, on_written: Callable[[], None] = lambda: None) -> None:
        self._folder, self._keep, self._on_written = folder, keep, on_written
        self._changed = threading.Condition()
        self._waiting: tuple[Checkpoint, float | None] | None = None
        self._writing = self._closed = False
        self._failures = 0
        self._problem = ""
        remove_leftovers(folder)
        self._thread = start_thread(self._work, name="checkpoint")

    def write(self, checkpoint: Checkpoint, *, val_error: float | None = None) -> int:
        """Copy the tensors and return their bytes; the file is written in the background.

        ``val_error`` is the validation error if this step was validated.
        """
        if self._failures >= _MOST_FAILURES:
            raise self._error()
        # on a GPU copying is queued behind the step, and does not wait
        snapshot = _mapped(checkpoint, lambda tensor: tensor.detach().clone())
        with self._changed:
            self._waiting = (snapshot, val_error)
            self._changed.notify_all()
        return _bytes(snapshot)

    def wait(self) -> None:
        """Wait until what was asked for is on disk; raise UserError if the last of it could not be written."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and not self._writing)
        if self._failures:
            raise self._error()

    def close(self) -> None:
        """Wait for the last write and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _error(self) -> UserError:
        return UserError(
            f"checkpoint not written to {self._folder}: {self._problem}; earlier checkpoints are intact: make room "
            "and start the same run again"
        )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                if self._waiting is None:
                    return
                (snapshot, val_error), self._waiting = self._waiting, None
                self._writing = True
            try:
                self._write(snapshot, val_error)
            finally:
                del snapshot
                with self._changed:
                    self._writing = False
                    self._changed.notify_all()

    def _write(self, snapshot: Checkpoint, val_error: float | None) -> None:
        step = snapshot.step
        try:
            write_checkpoint(self._folder, _on_host(snapshot), val_error=val_error)
            self._remove_old(step)
        except Exception as error:  # nothing may end this thread: training would wait for it for ever
            self._failures = self._failures + 1 if isinstance(error, OSError) else _MOST_FAILURES
            reason = error.strerror if isinstance(error, OSError) else None
            self._problem = reason or str(error) or type(error).__name__
            _log.warning("checkpoint of step %d not written: %s; the earlier ones are intact", step, self._problem)
        else:
            self._failures = 0
            self._on_written()

    def _remove_old(self, newest: int) -> None:
        """Keep the last ones up to ``newest`` and the best; what is beyond it is of a history that is void."""
        steps = checkpoint_steps(self._folder)
        valid = [step for step in steps if step <= newest]
        kept = {*valid[-self._keep :], *best_checkpoint(self._folder, valid)}
        for step in steps:
            if step not in kept:
                remove_checkpoint(self._folder, step)


def best_checkpoint(folder: Path, steps: list[int]) -> list[int]:
    """Return the step with the lowest validation error, the first of equals; empty if none was validated.

    Example: ``best_checkpoint(run.checkpoints, checkpoint_steps(run.checkpoints))``
    """
    errors = {}
    for step in steps:
        try:
            val_error = read_note(checkpoint_file(folder, step)).top1
        except (OSError, RecordError):
            continue
        if val_error is not None:
            errors[step] = val_error
    return [min(errors, key=lambda step: (errors[step], step))] if errors else []


def _on_host(snapshot: Checkpoint) -> Checkpoint:
    """Return a snapshot in host memory; from a GPU through a stream of its own, beside the training's."""
    devices = {tensor.device for tensor in _tensors(snapshot) if tensor.is_cuda}
    if not devices:
        return snapshot
    (device,) = devices
    torch.cuda.current_stream(device).synchronize()  # the copies are complete; this thread waits, not the training
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        return _mapped(snapshot, lambda tensor: tensor.cpu())


def _bytes(snapshot: Checkpoint) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(snapshot))


def _tensors(snapshot: Checkpoint) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def collect(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    _mapped(snapshot, collect)
    return found


def _mapped(checkpoint: Checkpoint, function: Callable[[torch.Tensor], torch.Tensor]) -> Checkpoint:
    """Return a checkpoint with a function's values in place of its tensors."""

    def mapped(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return function(value)
        if isinstance(value, dict):
            return {key: mapped(item) for key, item in value.items()}
        return [mapped(item) for item in value] if isinstance(value, list) else value

    return replace(checkpoint, **{name: mapped(value) for name, value in vars(checkpoint).items()})
