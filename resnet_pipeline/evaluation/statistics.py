"""How sure an error is, and whether two networks differ by more than chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resnet_pipeline.errors import UserError


def error_interval(
    wrong: npt.NDArray[np.bool_], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (Efron, 1979) of an error in percent, for ``wrong`` bool [N].

    Drawing N of N images again and counting the wrong ones is a binomial draw of N with their share, so no image is
    drawn. Raises UserError where there is no image.
    """
    count = len(wrong)
    if count == 0:
        raise UserError("no images: an error of none has no interval")
    draws = np.random.default_rng(seed).binomial(count, np.count_nonzero(wrong) / count, resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return 100 * float(low) / count, 100 * float(high) / count


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Two networks on the same images: how many only the first got wrong, only the second, and the test's p-value."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_wrong: npt.NDArray[np.bool_], second_wrong: npt.NDArray[np.bool_]) -> McNemar:
    """Test whether two networks err equally often on the same images (McNemar, 1947; exact, two-sided).

    Only the images on which they disagree count: if both err equally often, each of those is wrong for the first with
    probability one half. Raises UserError where the lengths differ.
    """
    if len(first_wrong) != len(second_wrong):
        raise UserError(
            f"two networks can be tested on the same images only, not {len(first_wrong)} and {len(second_wrong)}"
        )
    first = int(np.count_nonzero(first_wrong & ~second_wrong))
    second = int(np.count_nonzero(second_wrong & ~first_wrong))
    return McNemar(only_first=first, only_second=second, p_value=_sign_test(first, second))


def _sign_test(first: int, second: int) -> float:
    """Return the two-sided p-value of ``first`` successes in first + second fair trials."""
    trials, least = first + second, min(first, second)
    if first == second:
        return 1.0
    log_half = trials * math.log(0.5)
    choose = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) for k in range(least + 1)]
    return min(1.0, 2 * math.fsum(math.exp(c + log_half) for c in choose))
