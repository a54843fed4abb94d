"""Tables on the terminal, or in a file: how wide they may be, and the report as one."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from resnet_pipeline.names import printable
from resnet_pipeline.progress import per_second
from resnet_pipeline.report.content import ReportData
from resnet_pipeline.report.model_card import MeasuredErrors

_WIDEST = 10_000
_NAME = 30  # characters of a network's name on one line


def output() -> Console:
    """Return the console of stdout, as wide as the terminal; a file or pipe has no width and gets 120 (or COLUMNS)."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    # a name is shown as it is, whatever brackets and colons it has
    return Console(width=None if known else 120, markup=False, emoji=False)


def print_table(table: Table, *, least: int | None = None) -> None:
    """Print a table on stdout.

    On a terminal that has no room for the ``least`` columns (None: as many as the longest words take) lines go on in
    the next one: rich would cut the numbers.

    Example: ``print_table(render_table(data))``
    """
    console = output()
    if least is None:
        least = Measurement.get(console, console.options.update(width=_WIDEST), table).minimum
    if console.width < least:
        console.width = least
    console.print(table)


def render_table(data: ReportData) -> Table:
    """Return a row per member and one for the ensemble: depth, parameters, errors per protocol, images/s, time."""
    table = Table(title=data.title, title_justify="left", caption="errors in percent")
    long = any(len(member.name) > _NAME for member in data.members)  # runs of one recipe, told apart
    table.add_column("network", no_wrap=not long, max_width=_NAME if long else None)
    for column in ("depth", "parameters"):
        table.add_column(column, justify="right")
    for protocol in data.protocols:
        table.add_column(f"{protocol}\ntop-1", justify="right")
        table.add_column(f"{protocol}\ntop-5", justify="right")
    for column in ("training\nimages/s", "training\ntime", f"{data.protocols[-1]}\nimages/s"):
        table.add_column(column, justify="right")
    for member in data.members:
        table.add_row(
            printable(member.name),
            str(member.depth),
            human(member.parameters),
            *_errors(data.protocols, member.errors),
            per_second(member.images_per_second),
            duration(member.seconds),
            per_second(member.test_images_per_second) if member.test_images_per_second is not None else "–",
        )
    if data.ensemble:
        table.add_section()
        parameters = sum(m.parameters for m in data.members)
        row = [f"ensemble of {len(data.ensemble.members)}", "", human(parameters)]
        row += _errors(data.protocols, data.ensemble.errors)
        row += ["", duration(sum(m.seconds for m in data.members)), per_second(data.ensemble.test_images_per_second)]
        table.add_row(*row, style="bold")
    return table


def human(number: float) -> str:
    """Return a count with a unit: 25.6 M, 3.86 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}\u00a0{unit}"
    return f"{number:g}"


def duration(seconds: float) -> str:
    """Return seconds as 12 s, 3:04 or 5:03:04.

    >>> duration(12.3), duration(184), duration(18184)
    ('12 s', '3:04', '5:03:04')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _errors(protocols: list[str], errors: dict[str, MeasuredErrors]) -> list[str]:
    found = [errors.get(protocol) for protocol in protocols]
    return [f"{value:.2f}" if e else "–" for e in found for value in ((e.top1, e.top5) if e else (0, 0))]
