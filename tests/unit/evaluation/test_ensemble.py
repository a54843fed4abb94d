from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss, top_k_accuracy_score

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import (
    average,
    errors_of,
    fit_weights,
    greedy_selection,
    halves,
    leave_one_out,
    rows_of,
)
from resnet_pipeline.evaluation.scores import Scores

CLASSES = 12


def member(seed: int, skill: float, samples: int = 400) -> Scores:
    labels = np.random.default_rng(99).integers(0, CLASSES, samples)
    logits = np.random.default_rng(seed).normal(size=(samples, CLASSES)) + skill * np.eye(CLASSES)[labels]
    return Scores(
        model=f"m{seed}",
        weights_sha256=f"{seed:064x}",
        dataset_fingerprint="d" * 64,
        split="val",
        protocol="center",
        seconds=1.0,
        keys=[str(i) for i in range(samples)],
        labels=labels,
        probabilities=softmax(logits, 1).astype(np.float32),
    )


@pytest.fixture(scope="module")
def members():
    return [member(0, 1.5), member(1, 1.0), member(2, 0.0), member(3, 1.2)]


def slow_errors(probabilities, labels):
    accuracy = [top_k_accuracy_score(labels, probabilities, k=k, labels=np.arange(CLASSES)) for k in (1, 5)]
    return [100 * (1 - a) for a in accuracy]


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
@pytest.mark.parametrize("weights", [None, [3.0, 1.0, 0.0, 2.0]])
def test_the_mean_is_numpy_s(members, combine, weights):
    stack = np.stack([m.probabilities for m in members]).astype(np.float64)
    expected = np.average(stack, axis=0, weights=weights)
    if combine == "logits":
        expected = softmax(np.average(log_softmax(np.log(stack), 2), axis=0, weights=weights), 1)
    found = average(iter(members), weights=weights, combine=combine)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-5)
    errors = errors_of(found)
    assert [errors.top1, errors.top5] == pytest.approx(slow_errors(expected, found.labels))


def test_a_probability_of_zero_does_not_become_nan(members):
    zero = dataclasses.replace(members[0], probabilities=members[0].probabilities.astype(np.float16) * np.float16(0))
    found = average([zero, members[1]], combine="logits")
    assert np.isfinite(found.probabilities).all()
    np.testing.assert_array_equal(found.probabilities.argmax(1), members[1].probabilities.argmax(1))


def test_greedy_selection_takes_the_best_next_member_by_exhaustive_search(members):
    steps = greedy_selection(members, by="top1")
    assert sorted(s.member for s in steps) == [0, 1, 2, 3]
    taken: list[int] = []
    for step in steps:
        tried = {
            i: slow_errors(np.mean([members[j].probabilities for j in [*taken, i]], axis=0), members[0].labels)
            for i in range(4)
            if i not in taken
        }
        assert tried[step.member][0] == pytest.approx(min(e[0] for e in tried.values()))
        assert (step.top1, step.top5) == pytest.approx(tuple(tried[step.member]))
        taken.append(step.member)
    assert errors_of(average(members)).top1 == pytest.approx(steps[-1].top1)


@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_leaving_one_out_is_the_ensemble_of_the_others(members, combine):
    for left_out, found in enumerate(leave_one_out(members, combine=combine)):
        others = average([m for i, m in enumerate(members) if i != left_out], combine=combine)
        assert found.top1 == pytest.approx(errors_of(others).top1, abs=0.26)  # at most one tie broken otherwise
    with pytest.raises(UserError, match="at least two"):
        leave_one_out(members[:1])


@pytest.mark.slow
@pytest.mark.parametrize("combine", ["probabilities", "logits"])
def test_fitted_weights_minimise_the_log_likelihood(members, combine):
    def loss(weights):
        mean = average(members, weights=list(weights / weights.sum()), combine=combine)
        exact = mean.probabilities.astype(np.float64)
        return log_loss(mean.labels, exact / exact.sum(1, keepdims=True), labels=np.arange(CLASSES))

    found = np.array(fit_weights(members, combine=combine))
    assert found.sum() == pytest.approx(1) and (found >= 0).all()
    slow = minimize(lambda z: loss(np.exp(z)), np.zeros(4), method="Nelder-Mead", options={"maxiter": 400})
    assert loss(found) <= slow.fun + 1e-4
    assert loss(found) < loss(np.ones(4))
    assert found[2] == found.min(), "the member without skill weighs least"


def test_one_image_has_no_halves():
    with pytest.raises(UserError, match="1 is too few"):
        halves(1)


def test_halves_share_no_sample_and_are_random():
    fit, report = halves(101)
    assert sorted([*fit, *report]) == list(range(101)) and not set(fit) & set(report)
    np.testing.assert_array_equal(halves(101)[0], fit)
    assert not np.array_equal(halves(101, seed=1)[0], fit)
    assert rows_of(member(0, 1.0), fit).keys == [str(i) for i in fit]


def test_weights_that_cannot_be_are_refused(members):
    for weights in ([-1.0, 1, 1, 1], [0.0] * 4):
        with pytest.raises(UserError, match="weights"):
            average(members, weights=weights)
    for count in (3, 5):
        with pytest.raises(UserError, match=f"{count} weights"):
            average(members, weights=[1.0] * count)


def test_ensembles_of_unlabelled_samples_have_scores_but_no_errors(members):
    unlabelled = [dataclasses.replace(m, labels=np.full(400, -1)) for m in members]
    mean = average(unlabelled)
    np.testing.assert_array_equal(mean.probabilities, average(members).probabilities)
    for metric in (errors_of, lambda m: fit_weights([m]), lambda m: greedy_selection([m, m])):
        with pytest.raises(UserError, match="no label"):
            metric(mean)


def test_the_order_of_members_does_not_matter(members):
    first = errors_of(average(members))
    assert all(errors_of(average(p)) == first for p in itertools.permutations(members))
