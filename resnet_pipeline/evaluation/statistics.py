"""How sure an error is, and whether two networks differ by more than chance; promotion.py decides by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resnet_pipeline.errors import UserError


def error_interval(wrong: npt.NDArray[np.bool_], *, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval (1927) of an error in percent, for ``wrong`` bool [N].

    It holds for few images and for few errors, too: none wrong of 364 is 0 to 1.04 %. Raises UserError if there is no
    image.

    Example: ``error_interval(np.zeros(364, bool))``
    """
    from scipy.stats import binomtest  # half a second that most commands need not pay

    if not len(wrong):
        raise UserError("no images: an error of none has no interval")
    interval = binomtest(int(np.count_nonzero(wrong)), len(wrong)).proportion_ci(confidence, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Two networks on the same images: how many only the first got wrong, only the second, and the test's p-value."""

    only_first: int
    only_second: int
    p_value: float


def p_text(p_value: float) -> str:
    """Return a p-value as text; what is below a float's range is 0, which no p-value is.

    >>> p_text(0.0)
    'p < 1e-300'
    """
    return f"p = {p_value:.2g}" if p_value > 1e-300 else "p < 1e-300"


def mcnemar(first_wrong: npt.NDArray[np.bool_], second_wrong: npt.NDArray[np.bool_]) -> McNemar:
    """Test whether two networks err equally often on the same images (McNemar, 1947; exact, two-sided).

    Only the images on which they disagree count: if both err equally often, each of those is wrong for the first with
    probability one half. Raises UserError if the lengths differ.

    Example: ``mcnemar(np.array([True, False]), np.array([False, False])).p_value``
    """
    from scipy.stats import binomtest

    if len(first_wrong) != len(second_wrong):
        raise UserError(
            f"two networks can be tested on the same images only, not {len(first_wrong)} and {len(second_wrong)}"
        )
    first = int(np.count_nonzero(first_wrong & ~second_wrong))
    second = int(np.count_nonzero(second_wrong & ~first_wrong))
    p_value = float(binomtest(first, first + second).pvalue) if first + second else 1.0
    return McNemar(only_first=first, only_second=second, p_value=p_value)
