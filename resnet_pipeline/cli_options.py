"""What several modules of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from resnet_pipeline.errors import UserError
from resnet_pipeline.workspace import ROOT_VARIABLE, write_json

Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        envvar=ROOT_VARIABLE,
        help="Where everything is kept: datasets, runs, scores, reports. Default: ./work",
    ),
]
Json = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars or lines.")]


def write_result(path: Path | None, value: Any) -> None:
    """Write what ``--json`` asks for, where it does."""
    if path is None:
        return
    try:
        write_json(path, value)
    except OSError as error:
        raise UserError(f"--json {path} can't be written: {error.strerror or error}") from None
