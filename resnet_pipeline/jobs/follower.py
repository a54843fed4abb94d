"""Shows how far a run is, from its metrics file, whichever machine writes it."""

from __future__ import annotations

import logging

from resnet_pipeline.config import RunConfig
from resnet_pipeline.progress import Bar
from resnet_pipeline.training.metrics_log import (
    Line,
    NewLines,
    NoteEntry,
    ProfileEntry,
    ResumeEntry,
    TrainEntry,
    ValidationEntry,
)
from resnet_pipeline.training.profile import describe
from resnet_pipeline.training.run_directory import RunDirectory

_log = logging.getLogger(__name__)

_FIGURES = {"loss": "loss {:.3f}", "error": "error {:.1f} %", "top1": "error {:.2f} %"}  # as a bar shows them


class Follower:
    """Shows a run's metrics file as it grows, whichever machine writes it: on a bar, and events in the log.

    With ``notes`` it logs what the training has warned of, which otherwise is in this process's log already.
    """

    def __init__(self, run: RunDirectory, config: RunConfig, bar: Bar, *, notes: bool) -> None:
        self._run, self._config, self._bar, self._notes = run, config, bar, notes
        self._lines = NewLines(run.metrics_file)
        self._validation = ""
        bar.reach(0, detail="starting workers")

    def poll(self) -> None:
        """Show what the metrics file has that was not shown yet."""
        for line in self._lines.take():
            self._show(line)

    def _show(self, line: Line) -> None:
        recipe = self._config.recipe
        match line.entry:
            case TrainEntry(epoch=epoch, figures=figures, pace=pace):
                detail = [f"epoch {epoch:.1f}", *(_shown(*figure) for figure in figures.items())]
                rate = pace.images_per_second / self._config.batch
                self._bar.reach(line.step, detail="  ".join(detail) + self._validation, rate=rate)
            case ValidationEntry(figures=figures) if figures:
                self._validation = f"  val {_shown(*next(iter(figures.items())))}"
            case ProfileEntry() as profile:
                _log.info(
                    "%s: %s; traces in %s", recipe, describe(profile), f"{self._run.address}/{self._run.profile.name}"
                )
            case ResumeEntry(workers=workers) if line.step:
                _log.info("%s: %d worker(s) resume from step %d", recipe, workers, line.step)
            case NoteEntry(text=text) if self._notes:
                _log.warning("%s: %s", recipe, text)


def _shown(name: str, value: float) -> str:
    return _FIGURES.get(name, f"{name} {{:.4g}}").format(value)
