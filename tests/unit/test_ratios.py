"""The intervals of benchmarks/ratios.py, beside SciPy's binomial distribution."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from scipy.stats import binom

PATH = Path(__file__).parents[2] / "benchmarks" / "ratios.py"
spec = importlib.util.spec_from_file_location("ratios", PATH)
assert spec and spec.loader
ratios = importlib.util.module_from_spec(spec)
spec.loader.exec_module(ratios)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 8, 9, 15, 31, 100])
def test_the_interval_of_a_median_is_between_the_ranks_of_the_binomial_distribution(count):
    rank = max(1, int(binom.ppf(0.025, count, 0.5)))
    values = [float(value) for value in range(count)]
    assert ratios.interval_of_median(values[::-1]) == (values[rank - 1], values[count - rank])
    if count >= 6:
        assert binom.cdf(rank - 1, count, 0.5) <= 0.025  # below the interval lies the median in 1 of 40 cases


def test_ratios_are_those_of_the_same_round():
    assert ratios.ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0]) == "3.00 (2.00 to 4.00)"
    with pytest.raises(ValueError, match="longer"):
        ratios.ratio([1.0], [1.0, 2.0])
