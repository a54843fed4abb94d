"""What every flow does around its job: its parameters as a form, log and tables, how a stopped or failed one ends."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import operator
import shlex
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, ParamSpec, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogHandler
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Failed, get_state_exception
from pydantic import Field

from flows.parameters import Parameter
from resnet_pipeline.errors import StoppedError, UserError
from resnet_pipeline.logs import handled
from resnet_pipeline.records import JsonObject
from resnet_pipeline.settings import cleaned

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


_to_the_run = APILogHandler()
_to_the_run.addFilter(lambda record: bool(FlowRunContext.get() or TaskRunContext.get()))


def logged(function: Callable[P, R]) -> Callable[P, R]:
    """Let the program's log go to the log of the flow run while the function runs, and its end be the run's state.

    What Prefect's console shows of it is Prefect's to decide; the command line, if it has started the flow, shows
    its own. A run that was stopped is Cancelled. What the user can mend is the message of a Failed state, and no
    traceback; whoever has called the flow gets the exception itself.
    """

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        with handled(_to_the_run, level=logging.INFO):
            try:
                return function(*arguments, **named)
            except (StoppedError, KeyboardInterrupt, TerminationSignal) as stop:
                if deployment.id:  # on the command line the error itself says it
                    _log.warning("stopped; to go on: %s", _again())
                text = str(stop) if isinstance(stop, StoppedError) else "interrupted"
                return cast(R, Cancelled(message=text, data=stop))
            except UserError as error:
                return cast(R, Failed(message=cleaned(str(error)), data=error))

    return run


def briefly(function: Callable[P, R]) -> Callable[P, R]:
    """Let a task's error be one line in the log: `outcome` raises it in the flow."""

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return function(*arguments, **named)
        except (StoppedError, KeyboardInterrupt, TerminationSignal) as stop:
            return cast(R, Cancelled(message="stopped", data=stop))
        except UserError as error:
            return cast(R, Failed(message=cleaned(str(error)), data=error))

    return run


def outcome(returned: R) -> R:
    """Return what a task has returned; raise the error that `briefly` has made a state of."""
    if isinstance(returned, State):
        raise cast(BaseException, get_state_exception(returned))
    return returned


def _has_no_trace(record: logging.LogRecord) -> bool:
    """Drop Prefect's own account of an error that is the message of a state already: a traceback of its engine."""
    return not (record.exc_info and isinstance(record.exc_info[1], UserError | KeyboardInterrupt | TerminationSignal))


logging.getLogger("prefect.flow_runs").addFilter(_has_no_trace)


def _again() -> str:
    """Return the command that starts this flow run again."""
    given = shlex.quote(json.dumps(flow_run.parameters, default=str))
    return f"prefect deployment run {flow_run.flow_name}/{deployment.name} --params {given}"


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
