"""What every flow does around its job: messages to Prefect's log, errors as one line, tables as artifacts."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect.artifacts import create_table_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

from resnet_pipeline.logs import handled

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger(__name__)


_to_the_run = APILogHandler()
_to_the_run.addFilter(lambda record: bool(FlowRunContext.get() or TaskRunContext.get()))


def logged(function: Callable[P, R]) -> Callable[P, R]:
    """Let the program's log go to the log of the flow run while the function runs.

    What Prefect's console shows of it is Prefect's to decide; the command line, where it has started the flow, shows
    its own.
    """

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        with handled(_to_the_run, level=logging.INFO):
            return function(*arguments, **named)

    return run


def say() -> Callable[[str], None]:
    """Return what logs a line."""
    return _log.info


def table(key: str, rows: list[dict[str, Any]], description: str) -> None:
    """Keep rows as a table artifact of the flow run; keys hold lower-case letters, digits and dashes."""
    create_table_artifact(
        table=rows, key="".join(c if c.isalnum() else "-" for c in key.lower()), description=description
    )
