"""The gate before a champion: whether a network is better than another, on the same images, by more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.confusion import label_places
from resnet_pipeline.evaluation.scores import Scores


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Errors in percent on the same images, and by how much the candidate's is lower, with an interval."""

    images: int
    candidate: float
    champion: float
    better_by: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether the candidate is better by more than the interval allows for chance."""
        return self.low > 0


def compare(
    candidate: Scores, champion: Scores, *, top: Literal[1, 5] = 1, confidence: float = 0.95, resamples: int = 10_000
) -> Comparison:
    """Compare two networks on the images of both, by a paired percentile bootstrap of the difference of their errors.

    Drawing N of N images again and counting those that only one of the two got wrong is a multinomial draw, so no
    image is drawn. Raises UserError where the scores are not of the same images of the same data, saying in what they
    differ.
    """
    for field in ("dataset_fingerprint", "split", "protocol", "keys"):
        if getattr(candidate, field) != getattr(champion, field):
            raise UserError(f"the two were tested on different things: their {field.replace('_', ' ')} differs")
    wrong, before = (label_places(s.probabilities, s.labels) >= top for s in (candidate, champion))
    count = len(wrong)
    gained, lost = int(np.count_nonzero(before & ~wrong)), int(np.count_nonzero(wrong & ~before))
    shares = np.array([gained, lost, count - gained - lost]) / count
    draws = np.random.default_rng(0).multinomial(count, shares, resamples)
    differences: npt.NDArray[np.int64] = draws[:, 0] - draws[:, 1]
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return Comparison(
        images=count,
        candidate=100 * float(wrong.mean()),
        champion=100 * float(before.mean()),
        better_by=100 * (gained - lost) / count,
        low=100 * float(low) / count,
        high=100 * float(high) / count,
    )
