from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import bootstrap

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.promotion import compare
from resnet_pipeline.evaluation.scores import Scores


def scores(error: float, *, seed: int, samples: int = 800, classes: int = 10, **changes) -> Scores:
    """Random scores whose best class is wrong with about this probability."""
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(0, classes, samples)
    answers = np.where(rng.random(samples) < error, (labels + 1) % classes, labels)
    probabilities = rng.random((samples, classes)).astype(np.float32) * 0.1
    probabilities[np.arange(samples), answers] = 0.9
    values = {
        "model": f"m{seed}",
        "weights_sha256": f"{seed:064x}",
        "dataset_fingerprint": "d" * 64,
        "split": "val",
        "protocol": "center-16-of-18",
        "seconds": 1.0,
        "keys": [str(i) for i in range(samples)],
        "labels": labels,
        "probabilities": probabilities,
    }
    return Scores(**{**values, **changes})


@pytest.mark.parametrize("errors", [(0.2, 0.3), (0.28, 0.3), (0.5, 0.1)])
def test_the_interval_is_scipy_s_paired_bootstrap(errors):
    candidate, champion = (scores(e, seed=i) for i, e in enumerate(errors))
    found = compare(candidate, champion)
    wrong = [s.probabilities.argmax(1) != s.labels for s in (candidate, champion)]
    slow = bootstrap(
        [w.astype(float) for w in wrong],
        lambda a, b, axis: np.mean(b, axis=axis) - np.mean(a, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((100 * slow.low, 100 * slow.high), abs=0.3)
    assert found.candidate == pytest.approx(100 * wrong[0].mean()) and found.images == 800
    assert found.better_by == pytest.approx(found.champion - found.candidate)
    assert found.better == (errors[0] == 0.2)


def test_a_network_is_not_better_than_itself():
    same = scores(0.2, seed=0)
    found = compare(same, same)
    assert (found.low, found.better_by, found.high, found.p_value, found.better) == (0, 0, 0, 1, False)


@pytest.mark.parametrize(("mended", "better"), [(4, False), (5, False), (6, True)])
def test_a_few_disagreements_are_chance_until_the_exact_test_says_no(mended, better):
    champion = scores(0.3, seed=0)
    probabilities = champion.probabilities.copy()
    places = np.flatnonzero(probabilities.argmax(1) != champion.labels)[:mended]
    probabilities[places, champion.labels[places]] = 1
    found = compare(dataclasses.replace(champion, probabilities=probabilities), champion)
    assert found.p_value == pytest.approx(2 * 0.5**mended) and found.better is better
    assert not compare(champion, dataclasses.replace(champion, probabilities=probabilities)).better


def exact_p_value(better: int, worse: int) -> Fraction:
    """How likely two equally good networks disagree at least as unevenly: half of the disagreements go either way."""
    count = better + worse
    tail = Fraction(sum(math.comb(count, k) for k in range(min(better, worse) + 1)), 2**count)
    return min(Fraction(1), 2 * tail)


@pytest.mark.slow
@pytest.mark.parametrize(("error", "expected"), [(0.3, (1, 12)), (0.28, (10, 60)), (0.2, (197, 200))])
def test_who_is_let_through_is_decided_by_the_exact_test(error, expected):
    """200 pairs: of equal networks 2.5 % are to be expected, one that is far better nearly always passes."""
    let_through = 0
    for i in range(200):
        candidate, champion = scores(error, seed=2 * i), scores(0.3, seed=2 * i + 1)
        wrong, before = (s.probabilities.argmax(1) != s.labels for s in (candidate, champion))
        better, worse = int((before & ~wrong).sum()), int((wrong & ~before).sum())
        p_value = exact_p_value(better, worse)
        found = compare(candidate, champion, resamples=2)
        assert found.p_value == pytest.approx(float(p_value), rel=1e-9)
        assert found.better == (better > worse and p_value < Fraction(5, 100))
        let_through += found.better
    assert expected[0] <= let_through <= expected[1]


def test_pairing_counts_the_images_not_the_errors():
    champion = scores(0.3, seed=0)
    better = champion.probabilities.copy()
    mended = np.flatnonzero(better.argmax(1) != champion.labels)[:12]
    better[mended, champion.labels[mended]] = 1
    assert compare(dataclasses.replace(champion, probabilities=better), champion).better
    assert not compare(scores(0.285, seed=1), champion).better  # as much better, on other images


def test_top5_is_another_error():
    candidate, champion = scores(0.2, seed=0), scores(0.4, seed=1)
    assert compare(candidate, champion, top=5).champion < compare(candidate, champion, top=1).champion


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dataset_fingerprint": "e" * 64}, "dataset fingerprint"),
        ({"split": "test"}, "split"),
        ({"protocol": "x"}, "protocol"),
        ({"keys": [str(i) for i in range(1, 801)]}, "keys"),
    ],
)
def test_scores_of_different_things_are_not_compared(change, said):
    with pytest.raises(UserError, match=said):
        compare(scores(0.1, seed=0), scores(0.3, seed=1, **change))
