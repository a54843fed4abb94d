"""What our runs say of the paper's claims: decided by an exact paired test, or by intervals that lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resnet_pipeline.evaluation.exhibits import CLAIMS, Claim
from resnet_pipeline.evaluation.statistics import error_interval, mcnemar, p_text
from resnet_pipeline.report.kept import KeptRun

_EVIDENCE = 0.05  # the p-value below which a paired test decides, as in evaluation/promotion.py
VERDICTS = ("shows", "does not show", "undecided", "not run")
"""Of a claim: our runs show it, show the contrary, show neither, or there are none."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim of the paper, and what our runs say of it: ``verdict`` is one of VERDICTS."""

    claim: Claim
    verdict: str
    text: str


def findings_of(runs: Sequence[KeptRun]) -> tuple[Finding, ...]:
    """Return a finding for each of the paper's claims.

    Example: ``[finding.verdict for finding in findings_of(read_kept(folder).runs)]``
    """
    return tuple(_finding(claim, runs) for claim in CLAIMS)


def spread(counts: Sequence[tuple[int, int]]) -> str:
    """Return errors in percent from counts (wrong, images): one with its interval, of several mean and deviation.

    >>> spread([(5, 100)])
    '5.00 (2.15 to 11.18)'
    """
    errors = [100 * wrong / images for wrong, images in counts]
    if len(counts) == 1:
        low, high = wilson(*counts[0])
        return f"{errors[0]:.2f} ({low:.2f} to {high:.2f})"
    each = ", ".join(f"{error:.2f}" for error in errors)
    return f"{statistics.mean(errors):.2f} ± {statistics.stdev(errors):.2f} ({each})"


def wilson(wrong: int, images: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of an error in percent, from counts."""
    return error_interval(np.arange(images) < wrong)


def _finding(claim: Claim, runs: Sequence[KeptRun]) -> Finding:
    """Return what the runs say of a claim: those of one setting and seed, the longest there are."""
    pairs = [
        (higher, lower)
        for higher in runs
        for lower in runs
        if (_subject(higher), _subject(lower)) == (claim.higher, claim.lower)
        and (higher.setting, higher.seed) == (lower.setting, lower.seed)
        and higher.result
        and lower.result
    ]
    if not pairs:
        apart = {claim.higher, claim.lower} <= {_subject(run) for run in runs}
        why = "no finished runs of one dataset, budget and seed" if apart else "not run"
        return Finding(claim=claim, verdict="not run", text=why)
    higher, lower = max(pairs, key=lambda pair: (pair[0].steps, -pair[0].seed))
    names = f"{higher.network} {{}}, {lower.network} {{}}"
    if claim.on == "start":
        return _of_start(claim, names, higher, lower)
    if claim.on == "responses":
        return _of_responses(claim, names, higher, lower)
    if claim.on == "training":
        return _of_training(claim, names, higher, lower)
    tests = higher.test(claim.protocol), lower.test(claim.protocol)
    if tests[0] is None or tests[1] is None:
        return Finding(claim=claim, verdict="not run", text=f"not tested {claim.protocol} yet")
    found = mcnemar(tests[0].wrong_images(), tests[1].wrong_images())
    shown = [spread([(test.wrong1, test.images)]) for test in tests if test]
    verdict = _verdict(tests[0].top1 - tests[1].top1, decided=found.p_value < _EVIDENCE)
    text = f"{names.format(*shown)}; exact paired test: {p_text(found.p_value)}"
    return Finding(claim=claim, verdict=verdict, text=text)


def _of_training(claim: Claim, names: str, higher: KeptRun, lower: KeptRun) -> Finding:
    """Decide by the intervals of the last epoch's errors: they are of different crops, so no test is paired."""
    counts = [(run.trained_wrong, run.trained_images) for run in (higher, lower)]
    if not all(images for _, images in counts):
        return Finding(claim=claim, verdict="not run", text="no training errors are kept")
    (low, high), (other_low, other_high) = (wilson(*count) for count in counts)
    difference = 100 * (counts[0][0] / counts[0][1] - counts[1][0] / counts[1][1])
    verdict = _verdict(difference, decided=low > other_high or high < other_low)
    text = f"{names.format(*(spread([count]) for count in counts))} in the last epoch"
    return Finding(claim=claim, verdict=verdict, text=text)


def _subject(run: KeptRun) -> str:
    return f"{run.family}/{run.network}"


def _of_start(claim: Claim, names: str, higher: KeptRun, lower: KeptRun) -> Finding:
    """Compare the test before the first step with the other run's last one, of the same images."""
    test, curve = lower.test(claim.protocol), higher.validation
    if test is None or 0 not in curve.steps:
        return Finding(claim=claim, verdict="not run", text="the test before the first step is not kept")
    first = curve.values[curve.steps.index(0)]
    verdict = "shows" if abs(first - test.top1) * test.images < 50 else "does not show"  # as many images are wrong
    ends = spread([(test.wrong1, test.images)])
    return Finding(
        claim=claim, verdict=verdict, text=names.format(f"{first:.2f} before its first step", f"ends at {ends}")
    )


def _of_responses(claim: Claim, names: str, higher: KeptRun, lower: KeptRun) -> Finding:
    if higher.responses is None or lower.responses is None:
        return Finding(claim=claim, verdict="not run", text="responses not measured yet")
    means = [statistics.mean(run) for run in (higher.responses, lower.responses)]
    text = f"mean standard deviation: {names.format(*(f'{mean:.3f}' for mean in means))}"
    return Finding(claim=claim, verdict=_verdict(means[0] - means[1], decided=True), text=text)


def _verdict(difference: float, *, decided: bool) -> str:
    if not decided or difference == 0:
        return "undecided"
    return "shows" if difference > 0 else "does not show"
