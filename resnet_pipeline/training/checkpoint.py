"""Checkpoints: everything that a run needs to go on, atomic, verified when read.

``step-00001000.pt`` holds the tensors, ``step-00001000.json`` beside it the file's SHA-256; the second is written
last, so a checkpoint exists once its JSON does. Files are read with ``weights_only=True``: nothing in them can run.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.workspace import replacing, write_json

FORMAT = 1


class CheckpointError(UserError):
    """A checkpoint that does not belong to this run, or that a newer version wrote."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after ``step`` optimiser steps.

    ``statistics`` [W, K] are each rank's batch-norm statistics; a resumption with another number of ranks takes their
    mean. ``extra`` is plain JSON: schedule state, best error, seconds of training so far. ``ema`` are the averaged
    weights of a run that averages them.
    """

    step: int
    config_hash: str
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    statistics: torch.Tensor
    extra: dict[str, Any]
    ema: dict[str, torch.Tensor] = field(default_factory=dict)


class CheckpointWriter:
    """Writes checkpoints in a background thread, one at a time, and keeps the newest ``keep``."""

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self._folder = folder
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def write(self, checkpoint: Checkpoint) -> None:
        """Copy the tensors to host memory and return; the file is written behind. Raises what the last write raised."""
        self.wait()
        payload = _to_cpu(
            {
                "format": FORMAT,
                "config_hash": checkpoint.config_hash,
                "step": checkpoint.step,
                "model": checkpoint.model,
                "optimizer": checkpoint.optimizer,
                "statistics": checkpoint.statistics,
                "extra": checkpoint.extra,
                "ema": checkpoint.ema,
            }
        )
        self._pending = self._thread.submit(self._write, checkpoint.step, payload)

    def wait(self) -> None:
        """Wait until what was asked for is on disk; raise UserError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except OSError as error:
            raise UserError(
                f"checkpoint not written to {self._folder}: {error}; earlier checkpoints are intact"
            ) from error

    def close(self) -> None:
        """Wait for the last write and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, step: int, payload: dict[str, Any]) -> None:
        path = self._folder / f"step-{step:08d}.pt"
        with replacing(path) as temporary:
            torch.save(payload, temporary)
            digest = _sha256(temporary)
        write_json(path.with_suffix(".json"), {"step": step, "sha256": digest, "bytes": path.stat().st_size})
        for old in _steps(self._folder)[: -self._keep]:
            (self._folder / f"step-{old:08d}.json").unlink(missing_ok=True)
            (self._folder / f"step-{old:08d}.pt").unlink(missing_ok=True)


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint whose checksum is right, and a line for each damaged newer one."""
    problems: list[str] = []
    for step in reversed(_steps(folder)):
        path = folder / f"step-{step:08d}.pt"
        try:
            if _sha256(path) == json.loads(path.with_suffix(".json").read_text())["sha256"]:
                return path, problems
            problems.append(f"{path.name} does not match its checksum; falling back to the one before")
        except (OSError, ValueError, KeyError) as error:
            problems.append(f"{path.name} can't be read ({error}); falling back to the one before")
    return None, problems


def read_checkpoint(path: Path, *, config_hash: str) -> Checkpoint:
    """Read a checkpoint of the run with this config hash; CheckpointError where it is another's or unreadable."""
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is no readable checkpoint: {reason}") from None
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        found = payload.get("format") if isinstance(payload, dict) else None
        raise CheckpointError(f"{path} has format {found}; this version reads {FORMAT}")
    if payload["config_hash"] != config_hash:
        raise CheckpointError(f"{path} belongs to config {payload['config_hash']}, not to this run's {config_hash}")
    return Checkpoint(**{key: value for key, value in payload.items() if key != "format"})


def _steps(folder: Path) -> list[int]:
    return sorted(int(p.stem.removeprefix("step-")) for p in folder.glob("step-*.json"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_cpu(item) for item in value]
    return value
