from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.statistics import error_interval, mcnemar


def wrong_of(seed, count, share):
    return np.random.default_rng(seed).random(count) < share


@pytest.mark.parametrize(("count", "share"), [(1000, 0.25), (300, 0.05), (50, 0.5)])
def test_the_interval_is_scipy_s_bootstrap_of_the_images_themselves(count, share):
    wrong = wrong_of(1, count, share)
    slow = bootstrap(
        (wrong.astype(float),), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    low, high = error_interval(wrong, resamples=20_000)
    assert (low, high) == pytest.approx((100 * slow.low, 100 * slow.high), abs=2 * 100 / count + 0.2)
    assert low < 100 * wrong.mean() < high


def test_intervals_cover_the_truth_as_often_as_they_say():
    inside = 0
    for seed in range(300):
        low, high = error_interval(wrong_of(seed, 400, 0.3), confidence=0.9, resamples=500, seed=seed)
        inside += low <= 30 <= high
    assert 0.84 < inside / 300 < 0.96


def test_extremes_and_repetition():
    assert error_interval(np.zeros(10, bool)) == (0, 0)
    assert error_interval(np.ones(10, bool)) == (100, 100)
    wrong = wrong_of(0, 500, 0.2)
    assert error_interval(wrong) == error_interval(wrong)
    assert error_interval(wrong, confidence=0.99)[0] <= error_interval(wrong)[0]
    with pytest.raises(UserError, match="no images"):
        error_interval(np.zeros(0, bool))


@pytest.mark.parametrize(("first", "second"), [(0.3, 0.2), (0.2, 0.2), (0.9, 0.01)])
def test_mcnemar_is_the_exact_sign_test(first, second):
    a, b = wrong_of(3, 2000, first), wrong_of(4, 2000, second)
    result = mcnemar(a, b)
    assert (result.only_first, result.only_second) == ((a & ~b).sum(), (b & ~a).sum())
    expected = binomtest(result.only_first, result.only_first + result.only_second).pvalue
    assert result.p_value == pytest.approx(expected, rel=1e-6, abs=1e-300)
    assert mcnemar(a, a).p_value == 1
    with pytest.raises(UserError, match="1999"):
        mcnemar(a, b[1:])
