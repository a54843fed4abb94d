"""Checkpoints: everything that a run needs to resume, verified when read.

``step-00001000.pt`` holds the tensors, ``step-00001000.json`` beside it the file's SHA-256; the second is written
last, so a checkpoint exists once its JSON does. Files are read with ``weights_only=True``: nothing in them can run.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing, sha256_of, write_json
from resnet_pipeline.records import RecordError, load_record, plain, read_record
from resnet_pipeline.training.schedule import ScheduleState

FORMAT = 2
_KINDS = {
    "step": int, "model": dict, "optimizer": dict, "statistics": torch.Tensor, "sums": torch.Tensor, "ema": dict,
}  # fmt: skip


class CheckpointError(UserError):
    """A checkpoint that does not belong to this run, that another version wrote, or that is none."""


class OtherRunError(CheckpointError):
    """A checkpoint that belongs to another run."""


class OtherFormatError(CheckpointError):
    """A checkpoint of another version: to pass over it would be to throw away what that version computed."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run has become beside its tensors."""

    schedule: ScheduleState
    seconds: float
    """Of training so far, in all attempts; validations don't count."""
    last_train: Mapping[str, float]
    """The figures of the last log point; empty before the first."""
    best: Mapping[str, float | int]
    """The lowest validation error so far, and its "step"; empty before the first validation."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after ``step`` optimiser steps of the run of this name (recipe, dataset, seed, config).

    ``statistics`` [W, S] are each rank's batch-norm statistics, ``sums`` float64 [W, K] its task's counts since the
    last log point (of classification: loss, wrong answers, images). A resumption with another number of ranks takes
    the statistics' mean and the sums' total. ``ema`` are the averaged weights of a run that averages them. Order and
    augmentation are functions of the step, and nothing in training draws from a generator, so there is no RNG state;
    nothing is scaled, so there is no scaler's. Stored are plain values and tensors.
    """

    step: int
    run: str
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]  # as PyTorch has it
    statistics: torch.Tensor
    sums: torch.Tensor
    extra: Progress
    ema: dict[str, torch.Tensor] = field(default_factory=dict)

    def payload(self) -> dict[str, Any]:
        """Return the checkpoint as the plain dictionary that is stored."""
        return {"format": FORMAT, **vars(self), "extra": plain(self.extra)}


@dataclass(frozen=True, kw_only=True)
class CheckpointNote:
    """What the JSON beside a checkpoint says."""

    step: int
    sha256: str
    bytes: int
    top1: float | None = None
    """The validation error at this step, whatever the task calls it: the format is older than tasks."""

    def __post_init__(self) -> None:
        """Raise RecordError for a step that no run has."""
        if not 0 <= self.step < 10**12:
            raise RecordError(f"{self.step!r:.20} is no step")


def checkpoint_file(folder: Path, step: int) -> Path:
    """Return where the tensors of the checkpoint of a step lie.

    >>> checkpoint_file(Path("checkpoints"), 60).as_posix()
    'checkpoints/step-00000060.pt'
    """
    return folder / f"step-{step:08d}.pt"


def step_of(path: Path) -> int:
    """Return the step of a checkpoint's file.

    >>> step_of(Path("checkpoints/step-00000060.pt"))
    60
    """
    return int(path.stem.removeprefix("step-"))


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, val_error: float | None = None) -> Path:
    """Write a checkpoint atomically, then its checksum; ``val_error`` is the validation's at that step.

    Raises OSError if it can't be written (no space, say); what was there before stays.

    Example: ``write_checkpoint(run.checkpoints, state.state_dict(), val_error=12.5)``
    """
    path = checkpoint_file(folder, checkpoint.step)
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint.payload(), file)
        except RuntimeError as error:  # what PyTorch's writer makes of the file's own error
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
        digest = sha256_of(temporary)
        size = temporary.stat().st_size
    note = CheckpointNote(step=checkpoint.step, sha256=digest, bytes=size, top1=val_error)
    write_json(path.with_suffix(".json"), plain(note))
    return path


def read_checkpoint(path: Path, *, run: str, mmap: bool = False) -> Checkpoint:
    """Read a checkpoint of the run of this name; CheckpointError if it is another's or unreadable.

    With ``mmap`` tensors are read when they are looked at, and the file must stay.

    Example: ``read_checkpoint(path, run=run.identity()).step``
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file makes its reader raise almost anything
        # of a pickle PyTorch's text is advice to load it without care
        reason = "" if isinstance(error, pickle.UnpicklingError) else (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path} is no readable checkpoint: {reason or type(error).__name__}") from None
    found = payload.get("format") if isinstance(payload, dict) else None
    if found != FORMAT:
        newer = "; a newer version wrote it: update this one" if isinstance(found, int) and found > FORMAT else ""
        raise OtherFormatError(f"{path} has format {found}, and this version reads {FORMAT}{newer}")
    if payload.get("run") != run:
        raise OtherRunError(
            f"{path} belongs to the run {payload.get('run')} (recipe, dataset, seed, config), not to {run}; remove it"
        )
    try:
        extra = read_record(Progress, payload.pop("extra", None), where="extra.")
        checkpoint = Checkpoint(extra=extra, **{key: value for key, value in payload.items() if key != "format"})
    except (TypeError, RecordError) as error:
        raise CheckpointError(f"{path} is no complete checkpoint: {error}") from None
    for name, kind in _KINDS.items():
        if not isinstance(getattr(checkpoint, name), kind):
            raise CheckpointError(f"{path} is no complete checkpoint: its {name} is no {kind.__name__}")
    return checkpoint


def newest_checkpoint(folder: Path, *, run: str | None = None) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint whose checksum is right, and a line for each newer one that is damaged.

    With ``run`` one of another run counts as damaged if there is a good one before it, else OtherRunError is raised.
    Raises OtherFormatError for one of another version.

    Example: ``newest_checkpoint(run.checkpoints, run=run.identity())[0]``
    """
    other: OtherRunError | None = None
    problems: list[str] = []
    for step in reversed(checkpoint_steps(folder)):
        path = checkpoint_file(folder, step)
        try:
            if sha256_of(path) != read_note(path).sha256:
                problems.append(f"{path.name} does not match its checksum; falling back to the one before")
                continue
            if run is not None:
                read_checkpoint(path, run=run, mmap=True)
            return path, problems
        except OtherFormatError:
            raise
        except CheckpointError as error:
            other = other or (error if isinstance(error, OtherRunError) else None)
            problems.append(f"{error}; falling back to the one before")
        except (OSError, RecordError) as error:
            problems.append(f"{path.name} can't be read ({error}); falling back to the one before")
    if other is not None:
        raise other
    if problems:
        problems.append(f"no checkpoint in {folder} is left; the run starts again from step 0")
    return None, problems


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of which there is a checkpoint, whole or damaged, in increasing order.

    Example: ``checkpoint_steps(run.checkpoints)``
    """
    names = (p.stem.removeprefix("step-") for p in folder.glob("step-*.json"))
    return sorted(int(name) for name in names if name.isdecimal())


def remove_checkpoint(folder: Path, step: int) -> None:
    """Remove a checkpoint, its JSON first: what is left half removed does not count."""
    path = checkpoint_file(folder, step)
    path.with_suffix(".json").unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left: half a file, tensors without their JSON."""
    alone = [path for path in folder.glob("step-*.pt") if not path.with_suffix(".json").exists()]
    for left in (*folder.glob(".step-*"), *alone):
        left.unlink(missing_ok=True)


def read_note(path: Path) -> CheckpointNote:
    """Return what stands beside a checkpoint; OSError if it can't be read, RecordError for a damaged one.

    Example: ``read_note(checkpoint_file(run.checkpoints, 60)).sha256``
    """
    return load_record(CheckpointNote, path.with_suffix(".json"))
