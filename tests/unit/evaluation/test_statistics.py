from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import comb

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.statistics import error_interval, mcnemar


def wrong_of(seed, count, share):
    return np.random.default_rng(seed).random(count) < share


@pytest.mark.parametrize(("errors", "count"), [(0, 364), (1, 364), (25, 100), (500, 1000), (364, 364)])
def test_the_interval_is_wilson_s_formula(errors, count):
    share, z = errors / count, 1.959963984540054
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    wrong = np.arange(count) < errors
    assert error_interval(wrong) == pytest.approx((100 * (middle - half), 100 * (middle + half)), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.01])
def test_intervals_cover_the_truth_as_often_as_they_say(share):
    inside = 0
    for seed in range(400):
        low, high = error_interval(wrong_of(seed, 400, share), confidence=0.9)
        inside += low <= 100 * share <= high
    assert 0.85 < inside / 400 < 0.96


def test_no_error_of_364_may_still_be_one_percent():
    low, high = error_interval(np.zeros(364, bool))
    assert low == 0 and high == pytest.approx(1.04, abs=0.01)
    assert error_interval(np.ones(10, bool))[1] == 100
    with pytest.raises(UserError, match="no images"):
        error_interval(np.zeros(0, bool))


@pytest.mark.parametrize(("first", "second"), [(4, 0), (3, 1), (7, 7), (40, 21), (0, 0)])
def test_mcnemar_counts_all_more_extreme_cases(first, second):
    a = np.array([True] * first + [False] * second + [True, False])
    b = np.array([False] * first + [True] * second + [True, False])
    result, trials = mcnemar(a, b), first + second
    assert (result.only_first, result.only_second) == (first, second)
    tail = sum(comb(trials, k, exact=True) for k in range(min(first, second) + 1)) / 2**trials
    assert result.p_value == pytest.approx(min(1, 2 * tail))


def test_mcnemar_takes_the_same_images_only():
    a = wrong_of(3, 200, 0.3)
    assert mcnemar(a, a).p_value == 1
    with pytest.raises(UserError, match="199"):
        mcnemar(a, a[1:])
