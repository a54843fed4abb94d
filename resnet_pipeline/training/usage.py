"""What a run has used so far: hours and worker-hours, of all its starts, from its metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.progress import cost
from resnet_pipeline.training.metrics_log import ResumeEntry, complete_lines


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The time from each start's first line of metrics to its last one, validations and repeated steps included.

    ``worker_seconds`` counts each worker's. What a start did before its first line and after its last one is not known.
    """

    seconds: float
    worker_seconds: float
    starts: int

    @classmethod
    def of(cls, metrics: Path) -> Usage:
        """Return what the run of a metrics file has used; nothing if there is no such file.

        Example: ``Usage.of(run.metrics_file).seconds / 3600``
        """
        seconds = worker_seconds = 0.0
        starts, workers, last = 0, 1, None
        for line in complete_lines(metrics):
            if isinstance(line.entry, ResumeEntry):
                starts, workers, last = starts + 1, line.entry.workers, line.time
            elif last is not None:
                # a clock that was set back takes nothing away
                passed = max(0.0, line.time - last)
                seconds, worker_seconds, last = seconds + passed, worker_seconds + workers * passed, line.time
        return cls(seconds=seconds, worker_seconds=worker_seconds, starts=starts)

    def describe(self, an_hour: float | None) -> str:
        """Return it in words, with what it cost if an hour has a price; empty for a run of before starts were noted.

        >>> Usage(seconds=5400, worker_seconds=10800, starts=1).describe(24.0)
        '3.00 worker-hours in 1 start, validations included, 36.00 at 24.00 an hour'
        """
        if not self.starts:
            return ""
        starts = f"{self.starts} start{'s' if self.starts > 1 else ''}"
        hours = f"{self.worker_seconds / 3600:,.2f} worker-hours in {starts}, validations included"
        return hours + cost(self.seconds, an_hour)
