"""Tables on the terminal, or in a file."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.table import Table


def output() -> Console:
    """Return the console of stdout, as wide as the terminal; a file or pipe has no width and gets 120 (or COLUMNS)."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console() if known else Console(width=120)


def print_table(table: Table) -> None:
    """Print a table on stdout."""
    output().print(table)
