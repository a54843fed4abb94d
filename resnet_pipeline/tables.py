"""Tables on the terminal, or in a file."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.table import Table


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; in a file or pipe, which has no width, 120 characters (or COLUMNS)."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    (Console() if known else Console(width=120)).print(table)
