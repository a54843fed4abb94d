"""What every flow does around its job: messages to Prefect's log, errors as one line, tables as artifacts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from resnet_pipeline.settings import surroundings


def say() -> Callable[[str], None]:
    """Return a function that logs a line to the flow run, and prints it where Prefect's console log is quiet."""
    try:
        logger: Any = get_run_logger()
    except MissingContextError:
        return print
    quiet = surroundings().prefect_logging_handlers_console_level != "INFO"

    def line(text: str) -> None:
        logger.log(logging.INFO, text)
        if quiet:
            print(text, flush=True)

    return line


def table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    """Keep rows as a table artifact of the flow run; keys hold lower-case letters, digits and dashes."""
    create_table_artifact(
        table=rows, key="".join(c if c.isalnum() else "-" for c in key.lower()), description=description
    )
