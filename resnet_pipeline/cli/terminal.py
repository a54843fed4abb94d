"""The tables that the evaluation commands print; errors in percent."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_pipeline.cli.console import say
from resnet_pipeline.names import printable
from resnet_pipeline.progress import per_second
from resnet_pipeline.report.terminal import output, print_table

if TYPE_CHECKING:
    from resnet_pipeline.detection.metrics import CocoMetrics
    from resnet_pipeline.evaluation.ensemble import Measured
    from resnet_pipeline.jobs.analyse import FittedWeights, NamedErrors, NetworkStatistics, PairStatistics
    from resnet_pipeline.jobs.detect import DetectorEvaluation

_WORDS = ("model", "member", "class", "taken for", "first", "second")
_NAME, _LEAST_NAME = 24, 8


@dataclass(frozen=True)
class ErrorLine:
    """A line of a table of errors: of which model, what was found, how fast the test was."""

    model: str
    tested: Measured
    images_per_second: float | None = None


def print_errors(title: str, lines: Iterable[ErrorLine]) -> None:
    """Print errors with their intervals; a split without labels has none."""
    columns = ("model", "images", "top-1 error %", "95 %", "top-5 error %", "95 %", "images/s")
    _print_table(title, columns, map(_errors, lines))


def print_precision(title: str, evaluations: Iterable[DetectorEvaluation]) -> None:
    """Print detectors' average precision with its intervals, that of masks in rows of their own."""
    columns = ("model", "images", "AP %", "95 %", "AP50 %", "95 %", "AP75 %", "recall %", "images/s")
    rows = []
    for found in evaluations:
        rate = f"{found.images / found.seconds:,.1f}" if found.seconds else ""
        rows.append((found.reference, f"{found.images:,}", *_precision(found.boxes), rate))
        if found.masks is not None:
            rows.append(("  its masks", "", *_precision(found.masks), ""))
        if found.voc is not None:
            value, interval = found.voc
            rows.append(
                ("  VOC's AP50", "", "", "", _number(value), _interval(interval) if interval else "", "", "", "")
            )
    _print_table(title, columns, rows)


def _precision(found: CocoMetrics) -> tuple[str, ...]:
    whole, half = ("", "") if found.intervals is None else map(_interval, found.intervals)
    return _number(found.ap), whole, _number(found.ap50), half, _number(found.ap75), _number(found.recall)


def print_fitted(names: Sequence[str], fitted: FittedWeights) -> None:
    """Print the weights of an ensemble's members and the errors on the half that they were not fitted on."""
    weights = ((name, f"{weight:.3f}") for name, weight in zip(names, fitted.weights, strict=True))
    _print_table(f"Weights fitted on {fitted.fitted_on:,} images", ("member", "weight"), weights)
    lines = [ErrorLine("weighted", fitted.weighted), ErrorLine("equal", fitted.equal)]
    print_errors(f"Reported on the other {fitted.reported_on:,}", lines)


def print_member_errors(title: str, rows: Iterable[NamedErrors]) -> None:
    """Print an ensemble's errors with or without each member."""
    cells = ((row.member, _number(row.top1), _number(row.top5)) for row in rows)
    _print_table(title, ("member", "top-1 error %", "top-5 error %"), cells)


def print_network(network: NetworkStatistics, most: int) -> None:
    """Print a network's calibration, worst classes and confusions."""
    real = f", ReaL top-1 error {_number(network.real.top1)} %" if network.real else ""
    say(f"{network.model}: calibration error {_number(network.calibration_error)} %{real}")
    worst = sorted(network.classes, key=lambda row: (-row.top1, -row.images))[:most]
    cells = ((row.name, f"{row.images:,}", _number(row.top1), _number(row.top5)) for row in worst)
    _print_table("Worst classes", ("class", "images", "top-1 error %", "top-5 error %"), cells)
    confusions = ((row.name, row.taken_for, f"{row.images:,}") for row in network.confusions)
    _print_table("Most frequent confusions", ("class", "taken for", "images"), confusions)


def print_pairs(pairs: Iterable[PairStatistics]) -> None:
    """Print how far networks agree, and McNemar's test of whether they err equally often."""
    columns = ("first", "second", "same answer %", "only first wrong", "only second wrong", "McNemar's p")
    cells = (
        (
            pair.first,
            pair.second,
            _number(pair.agreement),
            f"{pair.test.only_first:,}",
            f"{pair.test.only_second:,}",
            f"{pair.test.p_value:.2g}",
        )
        for pair in pairs
    )
    _print_table("Pairs of networks", columns, cells)


def print_responses(found: Mapping[str, Sequence[float]]) -> None:
    """Print a summary of layer responses."""
    columns = ("model", "layers", "mean", "median", "largest")
    cells = (
        (name, str(len(v)), *(f"{x:.3f}" for x in (statistics.mean(v), statistics.median(v), max(v))))
        for name, v in found.items()
    )
    _print_table("Standard deviation of the 3×3 layers' responses", columns, cells)


def _errors(line: ErrorLine) -> tuple[str, ...]:
    errors, speed = line.tested.errors, line.images_per_second
    return (
        line.model,
        f"{int(line.tested.images):,}",
        *(("", "", "", "") if errors is None else (
            _number(errors.top1), _interval(errors.top1_interval), _number(errors.top5), _interval(errors.top5_interval)
        )),
        "" if speed is None else per_second(speed),
    )  # fmt: skip


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _interval(value: tuple[float, float]) -> str:
    return f"{value[0]:.2f}–{value[1]:.2f}"


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table, cells = Table(title=printable(title)), [tuple(map(printable, row)) for row in rows]
    texts = [[column, *(row[place] for row in cells)] for place, column in enumerate(columns)]
    # names are folded first, then headings break, and numbers never do
    folded = [min(max(map(len, text)), _NAME) if text[0] in _WORDS else max(map(len, text)) for text in texts]
    broken = [
        min(width, _LEAST_NAME) if text[0] in _WORDS else max(map(len, [*text[0].split(), *text[1:]]))
        for text, width in zip(texts, folded, strict=True)
    ]
    narrow = sum(folded) + 3 * len(folded) >= output().width
    for (name, *_), width in zip(texts, broken, strict=True):
        if name in _WORDS:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", width=width if narrow else None)
    for row in cells:
        table.add_row(*row)
    print_table(table, least=sum(broken) + 3 * len(broken) + 1)


def told(validation: Mapping[str, float]) -> str:
    """Return what a validation came to in a few words: a classifier's errors, or a detector's precision.

    >>> told({"ap": 31.25, "ap50": 60.5, "ap75": 28.0, "error": 68.75})
    'AP 31.25 %, AP50 60.50 %'
    """
    if "top1" in validation:
        return f"top-1 error {validation['top1']:.2f} %, top-5 error {validation['top5']:.2f} %"
    named = {
        "localisation_error": "localisation error",
        "ap": "AP",
        "ap50": "AP50",
        "mask_ap": "AP of masks",
        "mask_ap50": "AP50 of masks",
    }
    return ", ".join(f"{name} {validation[key]:.2f} %" for key, name in named.items() if key in validation)
