"""What every flow does around its job: its parameters as a form, messages to Prefect's log, tables as artifacts."""

from __future__ import annotations

import functools
import inspect
import logging
import operator
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from prefect.artifacts import create_table_artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler
from pydantic import Field

from flows.parameters import Parameter
from resnet_pipeline.logs import handled
from resnet_pipeline.records import JsonObject

P = ParamSpec("P")
R = TypeVar("R")


_to_the_run = APILogHandler()
_to_the_run.addFilter(lambda record: bool(FlowRunContext.get() or TaskRunContext.get()))


def logged(function: Callable[P, R]) -> Callable[P, R]:
    """Let the program's log go to the log of the flow run while the function runs.

    What Prefect's console shows of it is Prefect's to decide; the command line, if it has started the flow, shows
    its own.
    """

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        with handled(_to_the_run, level=logging.INFO):
            return function(*arguments, **named)

    return run


def form(function: Callable[P, R]) -> Callable[P, R]:
    """Give a flow's parameters their help and bounds, as Prefect's form shows and checks them.

    The help goes to the docstring: Prefect (3.8) overwrites the descriptions of pydantic's ``Field`` with those there.
    """
    lines = [inspect.cleandoc(function.__doc__ or ""), "", "Args:"]
    for name, hint in get_type_hints(function, include_extras=True).items():
        for parameter in getattr(hint, "__metadata__", ()):
            if isinstance(parameter, Parameter):
                lines.append(f"    {name}: {parameter.help}")
                hint = _bounded(get_args(hint)[0], parameter)
        function.__annotations__[name] = hint
    function.__doc__ = "\n".join(lines) + "\n"
    return function


def _bounded(kind: Any, parameter: Parameter) -> Any:
    """Return the type with the bounds that fit it; a union's members each get their own."""
    if get_origin(kind) in (Union, UnionType):
        return functools.reduce(operator.or_, (_bounded(member, parameter) for member in get_args(kind)))
    if kind in (int, float):
        return Annotated[kind, Field(ge=parameter.least, le=parameter.most)]
    if kind is str and parameter.pattern is not None:
        return Annotated[kind, Field(pattern=parameter.pattern)]
    if get_origin(kind) is list and parameter.least is not None:
        return Annotated[kind, Field(min_length=int(parameter.least))]
    return None if kind is NoneType else kind


def table(key: str, rows: list[JsonObject], description: str) -> None:
    """Keep rows as a table artifact of the flow run; keys hold lower-case letters, digits and dashes."""
    create_table_artifact(
        table=rows, key="".join(c if c.isalnum() else "-" for c in key.lower()), description=description
    )
