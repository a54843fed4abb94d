"""Progress on a terminal as bars, elsewhere as a line every few seconds."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resnet_pipeline.config import RunConfig
from resnet_pipeline.training.profile import describe
from resnet_pipeline.training.run_directory import RunDirectory

SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def counting(title: str, *, quiet: bool, say: Callable[[str], None]) -> Iterator[Callable[..., None]]:
    """Yield a function to call with (done, in all, a remark); it shows a bar, or lines, with rate and time left.

    Its argument ``before`` is how many had been done when this began.
    """
    start = last = time.monotonic()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[remark]}"),
        TimeRemainingColumn(),
        disable=quiet or not sys.stdout.isatty(),
    ) as bar:
        task = bar.add_task(title, total=None, remark="")

        def update(done: int, total: int, remark: str = "", before: int = 0) -> None:
            nonlocal last, start
            now = time.monotonic()
            if done == before:  # still preparing
                start = now
            rate = (done - before) / max(now - start, 1e-9)
            bar.update(task, completed=done, total=total, remark=f"{rate:,.0f} images/s  {remark}")
            if bar.disable and not quiet and now - last > SECONDS_BETWEEN_LINES:
                last = now
                left = int((total - done) / rate) if rate else 0
                time_left = f"  {left // 60}:{left % 60:02d} left" if rate else ""
                say(f"{title}  {done:,}/{total:,} images  {rate:,.0f} images/s  {remark}{time_left}")

        yield update


class TrainingProgress:
    """Epoch, step, loss, error, images/s and time left of a run, from its metrics file.

    The workers that write it may be on other machines.
    """

    def __init__(self, run: RunDirectory, config: RunConfig, *, quiet: bool, say: Callable[[str], None]) -> None:
        self._run, self._config, self._say = run, config, say
        self._quiet = quiet
        self._offset = run.metrics_file.stat().st_size if run.metrics_file.exists() else 0
        self._last_line = 0.0
        self._validation = ""
        self._bar: Progress | None = None
        if sys.stdout.isatty() and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}"),
                TimeRemainingColumn(),
            )
            self._task = self._bar.add_task(config.recipe, total=config.steps, detail="starting workers")
            self._bar.start()

    def poll(self) -> None:
        """Show what the metrics file has that was not shown yet."""
        if not self._run.metrics_file.exists():
            return
        with self._run.metrics_file.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                self._show(json.loads(line))
            except ValueError:
                continue

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar:
            self._bar.stop()

    def _show(self, line: dict[str, Any]) -> None:
        if line["kind"] == "profile":
            self._say(f"{self._config.recipe}: {describe(line)}; traces in {self._run.profile}")
        if line["kind"] == "validation":
            self._validation = f"  val error {line['top1']:.2f} %"
        if line["kind"] == "note":
            self._say(f"{self._config.recipe}: {line['text']}")
        if line["kind"] == "resume" and line["step"]:
            self._say(f"{self._config.recipe}: {line.get('workers')} worker(s) go on from step {line['step']}")
        if line["kind"] != "train":
            return
        step, rate = line["step"], line["images_per_second"]
        detail = f"epoch {line['epoch']:.1f}  loss {line['loss']:.3f}  error {line['error']:.1f} %{self._validation}"
        if self._bar:
            self._bar.update(self._task, completed=step, detail=f"{detail}  {rate:,.0f} images/s")
        elif not self._quiet and (
            time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES or step == self._config.steps
        ):
            self._last_line = time.monotonic()
            left = (self._config.steps - step) * self._config.batch / max(rate, 1e-9)
            self._say(
                f"{self._config.recipe}  step {step}/{self._config.steps}  {detail}  {rate:,.0f} images/s  "
                f"{int(left // 60)}:{int(left % 60):02d} left"
            )
