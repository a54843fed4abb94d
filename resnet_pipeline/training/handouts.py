"""Networks of mid-training that others test while training goes on: handed out, answered, settled, as files of the run.

    tests/step-00005000.safetensors   the network of that step, with the mean of all ranks' batch-norm statistics
    tests/step-00005000.json          what its test came to
    tests/best.safetensors            the one with the lowest error of them

Who tests writes the JSON files alone. Rank 0 writes the others, removes what is settled, and alone writes the run's
metrics: two machines that append to one file may lose lines on a network drive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from resnet_pipeline.files import write_json
from resnet_pipeline.models.weights import save_weights
from resnet_pipeline.records import OMIT_NONE, RecordError, load_record, plain_record
from resnet_pipeline.training.run_directory import RunDirectory


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
        self._run, self._folder = run, run.path / "tests"

    def weights(self, step: int) -> Path:
        """Return where the network of a step lies."""
        return self._folder / f"step-{step:08d}.safetensors"

    def hand_out(self, step: int, network: nn.Module) -> None:
        """Ask for a test of the network as it is; OSError if there is no room for it."""
        self._folder.mkdir(exist_ok=True)
        self._answer_file(step).unlink(missing_ok=True)  # of an attempt that came as far
        save_weights(network, self.weights(step), {"recipe": self._run.config().recipe, "run": self._run.name})

    def asked(self) -> list[int]:
        """Return the steps whose networks wait for their tests, ascending."""
        return [step for step in self._steps() if not self._answer_file(step).exists()]

    def answer(self, step: int, answer: Answer) -> None:
        """Say what the test of a step came to."""
        write_json(self._answer_file(step), plain_record(answer))

    def answers(self) -> list[tuple[int, Answer]]:
        """Return what is answered and not settled, by step, ascending."""
        found = []
        for step in self._steps():
            try:
                found.append((step, load_record(Answer, self._answer_file(step))))
            except FileNotFoundError:
                continue
            except (OSError, RecordError) as error:
                found.append((step, Answer(problem=str(error))))
        return found

    def settle(self, step: int, *, best: bool) -> None:
        """Have done with a step; its network stays as the best one, or goes."""
        if best:
            self.weights(step).replace(self._folder / "best.safetensors")
        self.weights(step).unlink(missing_ok=True)
        self._answer_file(step).unlink(missing_ok=True)

    def discard(self, *, beyond: int) -> None:
        """Remove what was handed out beyond a step: the run has gone back to it."""
        for path in self._folder.glob("step-*"):
            if path.stem[5:].isdecimal() and int(path.stem[5:]) > beyond:
                path.unlink(missing_ok=True)

    def _answer_file(self, step: int) -> Path:
        return self.weights(step).with_suffix(".json")

    def _steps(self) -> list[int]:
        names = (path.stem[5:] for path in self._folder.glob("step-*.safetensors"))
        return sorted(int(name) for name in names if name.isdecimal())
