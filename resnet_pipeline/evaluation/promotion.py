"""The gate before a champion: whether a network is better than another, on the same images, by more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.confusion import label_places
from resnet_pipeline.evaluation.scores import Scores
from resnet_pipeline.evaluation.statistics import mcnemar

CHANCE = 0.05
"""The gate's level: two equally good networks are told apart this often, and the worse one wins half of these."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Errors in percent on the same images, by how much the candidate's is lower, and how likely chance is.

    ``p_value`` is the exact paired test's and decides; the interval ``low`` to ``high`` of the difference is for show.
    """

    images: int
    candidate: float
    champion: float
    better_by: float
    p_value: float
    low: float
    high: float

    @property
    def better(self) -> bool:
        """Whether the candidate is better by more than chance."""
        return self.better_by > 0 and self.p_value < CHANCE


def compare(candidate: Scores, champion: Scores, *, top: Literal[1, 5] = 1, resamples: int = 10_000) -> Comparison:
    """Compare two networks on the images of both by McNemar's exact test.

    Raises UserError if the scores are not of the same images of the same data, saying in what they differ.

    Example: ``compare(read_scores(candidate_file), read_scores(champion_file)).better``
    """
    for field in ("dataset_fingerprint", "split", "protocol", "keys"):
        if getattr(candidate, field) != getattr(champion, field):
            raise UserError(f"the two were tested on different things: their {field.replace('_', ' ')} differs")
    wrong, before = (label_places(s.probabilities, s.labels) >= top for s in (candidate, champion))
    return compare_wrong(wrong, before, resamples=resamples)


def compare_wrong(
    wrong: npt.NDArray[np.bool_], before: npt.NDArray[np.bool_], *, resamples: int = 10_000
) -> Comparison:
    """Compare two models by which images they get wrong, both bool [N], with McNemar's exact test.

    The 95 % interval of the difference is a paired percentile bootstrap: drawing N of N images again and counting those
    that only one of the two got wrong is a multinomial draw, so no image is drawn.

    >>> compare_wrong(np.zeros(8, bool), np.ones(8, bool)).better
    True
    """
    test, count = mcnemar(wrong, before), len(wrong)
    gained, lost = test.only_second, test.only_first
    shares = np.array([gained, lost, count - gained - lost]) / count
    draws = np.random.default_rng(0).multinomial(count, shares, resamples)
    differences: npt.NDArray[np.int64] = draws[:, 0] - draws[:, 1]
    low, high = np.quantile(differences, [0.025, 0.975])
    return Comparison(
        images=count,
        candidate=100 * float(wrong.mean()),
        champion=100 * float(before.mean()),
        better_by=100 * (gained - lost) / count,
        p_value=test.p_value,
        low=100 * float(low) / count,
        high=100 * float(high) / count,
    )
