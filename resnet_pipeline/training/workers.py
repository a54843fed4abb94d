"""How many processes train a run: a number, or a range that an elastic cluster fills as far as it can."""

from __future__ import annotations

import re
from dataclasses import dataclass

from resnet_pipeline.config import RunConfig
from resnet_pipeline.errors import UserError


@dataclass(frozen=True)
class Workers:
    """From ``least`` to ``most`` training processes."""

    least: int
    most: int

    @classmethod
    def of(cls, value: int | str) -> Workers:
        """Read ``2`` or ``1-4``; UserError if it is neither."""
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(value))
        least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= least <= most:
            raise UserError(f"--workers {value} is neither a number nor a range such as 1-4")
        return cls(least, most)

    @property
    def elastic(self) -> bool:
        """Whether their number may change in the middle of a run."""
        return self.least < self.most

    def counts(self, config: RunConfig) -> tuple[int, ...]:
        """Return the numbers of workers in the range that divide the batch; ConfigError if there is none."""
        good = tuple(n for n in range(self.least, self.most + 1) if config.micro_batches % n == 0)
        if not good:
            config.check_workers(self.most)  # says which could
        return good

    def __str__(self) -> str:
        """Return what `of` reads."""
        return f"{self.least}-{self.most}" if self.elastic else str(self.least)
