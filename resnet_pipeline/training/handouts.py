"""Networks of mid-training that others test while training goes on: handed out, answered, settled, as files of the run.

    tests/step-00005000.safetensors   the network of that step, with the mean of all ranks' batch-norm statistics
    tests/step-00005000.json          what its test came to
    tests/best.safetensors            the one with the lowest error of them

Who tests writes the JSON files alone. Rank 0 writes the others, removes what is settled, and alone writes the run's
metrics: two machines that append to one file may lose lines on a network drive. The files are in the run's directory if
all processes see that, else at the run's home.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from resnet_pipeline.errors import UserError
from resnet_pipeline.files import json_text, replacing
from resnet_pipeline.models.weights import save_weights
from resnet_pipeline.records import OMIT_NONE, RecordError, parse_record, plain_record
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.run_directory import RunDirectory

_FOLDER, _BEST = "tests/", "best.safetensors"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a test came to: its figures in their order, and which decides (`tasks.Figures`); the ``problem`` if none."""

    figures: tuple[tuple[str, float], ...] = ()
    error: str = ""
    problem: str | None = field(default=None, metadata=OMIT_NONE)


class Handouts:
    """The networks of a run that are tested aside, for rank 0 and for whoever tests them.

    Example: ``Handouts(run).asked()``
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._elsewhere = None if run.signals.shared else run.home
        self._files: Storage = self._elsewhere or LocalStorage(run.path)

    def weights(self, step: int) -> Path:
        """Return where the network of a step lies on this machine; it is brought if it is elsewhere."""
        path = self._path(step)
        if self._elsewhere and not path.exists():
            with replacing(path) as temporary, self._files.open(_name(step)) as source, temporary.open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
        return path

    def hand_out(self, step: int, network: nn.Module) -> None:
        """Ask for a test of the network as it is; OSError or UserError if there is no room for it."""
        path = self._path(step)
        path.parent.mkdir(exist_ok=True)
        self._files.delete(_answer_name(step))  # of an attempt that came as far
        save_weights(network, path, {"recipe": self._run.config().recipe, "run": self._run.name})
        if self._elsewhere:
            self._files.write(_name(step), path)

    def asked(self) -> list[int]:
        """Return the steps whose networks wait for their tests, ascending."""
        names = self._names()
        return [step for step in _steps(names) if _answer_name(step) not in names]

    def answer(self, step: int, answer: Answer) -> None:
        """Say what the test of a step came to."""
        self._files.write(_answer_name(step), json_text(plain_record(answer)).encode())

    def answers(self) -> list[tuple[int, Answer]]:
        """Return what is answered and not settled, by step, ascending."""
        found, names = [], self._names()
        for step in _steps(names):
            name = _answer_name(step)
            if name not in names:
                continue
            try:
                found.append((step, parse_record(Answer, self._files.read(name), name=f"{self._files.url}/{name}")))
            except (UserError, RecordError) as error:
                found.append((step, Answer(problem=str(error))))
        return found

    def settle(self, step: int, *, best: bool) -> None:
        """Have done with a step; its network stays as the best one, or goes."""
        if best and self._elsewhere:
            self._files.write(_FOLDER + _BEST, self.weights(step))
        elif best:
            self.weights(step).replace(self._path(step).with_name(_BEST))
        self._remove(step)

    def discard(self, *, beyond: int) -> None:
        """Remove what was handed out beyond a step: the run has gone back to it."""
        for step in {_step(name) for name in self._names()}:
            if step is not None and step > beyond:
                self._remove(step)

    def _remove(self, step: int) -> None:
        for name in (_name(step), _answer_name(step)):
            self._files.delete(name)
        self._path(step).unlink(missing_ok=True)

    def _names(self) -> set[str]:
        return {stored.name for stored in self._files.files(_FOLDER)}

    def _path(self, step: int) -> Path:
        return self._run.path / _name(step)


def _name(step: int) -> str:
    return f"{_FOLDER}step-{step:08d}.safetensors"


def _answer_name(step: int) -> str:
    return f"{_FOLDER}step-{step:08d}.json"


def _step(name: str) -> int | None:
    number = Path(name).stem.removeprefix("step-")
    return int(number) if number.isdecimal() else None


def _steps(names: set[str]) -> list[int]:
    """Return the steps that have a network, ascending."""
    found = (_step(name) for name in names if name.endswith(".safetensors"))
    return sorted(step for step in found if step is not None)
