"""The tables that the evaluation commands print; errors in percent."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from resnet_pipeline.names import printable
from resnet_pipeline.report.terminal import output, print_table

Row = Mapping[str, Any]
_WORDS = ("model", "member", "class", "taken for", "first", "second")
_NAME = 24


def print_errors(title: str, rows: Sequence[Row]) -> None:
    """Print errors with their intervals, as far as a row has them; a split without labels has none."""
    columns = ("model", "images", "top-1 error %", "95 %", "top-5 error %", "95 %", "images/s")
    _print_table(title, columns, map(_errors, rows))


def print_fitted(names: Sequence[str], fitted: Row) -> None:
    """Print the weights of an ensemble's members and the errors on the half that they were not fitted on."""
    weights = ((name, f"{weight:.3f}") for name, weight in zip(names, fitted["weights"], strict=True))
    _print_table(f"Weights fitted on {fitted['fitted_on']:,} images", ("member", "weight"), weights)
    rows = [{"model": kind, **fitted[kind]} for kind in ("weighted", "equal")]
    print_errors(f"Reported on the other {fitted['reported_on']:,}", rows)


def print_member_errors(title: str, rows: Iterable[Row]) -> None:
    """Print an ensemble's errors with or without each member."""
    cells = ((row["member"], _number(row["top1"]), _number(row["top5"])) for row in rows)
    _print_table(title, ("member", "top-1 error %", "top-5 error %"), cells)


def print_network(network: Row, most: int) -> None:
    """Print a network's calibration, worst classes and confusions."""
    real = f", ReaL top-1 error {_number(network['real']['top1'])} %" if "real" in network else ""
    print(f"{network['model']}: calibration error {_number(network['calibration_error'])} %{real}")
    worst = sorted(network["classes"], key=lambda c: (-c["top1"], -c["images"]))[:most]
    cells = ((c["class"], f"{c['images']:,}", _number(c["top1"]), _number(c["top5"])) for c in worst)
    _print_table("Worst classes", ("class", "images", "top-1 error %", "top-5 error %"), cells)
    confusions = ((c["class"], c["taken_for"], f"{c['images']:,}") for c in network["confusions"])
    _print_table("Most frequent confusions", ("class", "taken for", "images"), confusions)


def print_pairs(pairs: Iterable[Row]) -> None:
    """Print how far networks agree, and McNemar's test of whether they err equally often."""
    columns = ("first", "second", "same answer %", "only first wrong", "only second wrong", "McNemar's p")
    cells = (
        (
            p["first"],
            p["second"],
            _number(p["agreement"]),
            f"{p['only_first']:,}",
            f"{p['only_second']:,}",
            f"{p['p_value']:.2g}",
        )
        for p in pairs
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


def _errors(row: Row) -> tuple[str, ...]:
    return (
        row["model"],
        f"{int(row['images']):,}",
        _number(row.get("top1")),
        _interval(row.get("top1_interval")),
        _number(row.get("top5")),
        _interval(row.get("top5_interval")),
        f"{row['images_per_second']:,.1f}" if "images_per_second" in row else "",
    )


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def _interval(value: tuple[float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.2f}–{value[1]:.2f}"


def _print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table, cells = Table(title=printable(title)), [tuple(map(printable, row)) for row in rows]
    texts = [[column, *(row[place] for row in cells)] for place, column in enumerate(columns)]
    # names are folded first, down to this width
    least = [min(max(map(len, text)), _NAME) if text[0] in _WORDS else max(map(len, text)) for text in texts]
    narrow = sum(least) + 3 * len(least) >= output().width
    for name, *values in texts:
        if name in _WORDS:
            table.add_column(name, overflow="fold")
        else:  # if there is no room, headings break and numbers don't
            width = max(map(len, [*name.split(), *values])) if narrow else None
            table.add_column(name, justify="right", width=width)
    for row in cells:
        table.add_row(*row)
    print_table(table)
