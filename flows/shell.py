"""What every flow does around its job: parameters as a form, log and progress, its phases, and how it ends."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import operator
import shlex
from collections.abc import Callable
from contextlib import nullcontext
from types import NoneType, UnionType
from typing import Annotated, Any, ParamSpec, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import TerminationSignal
from prefect.logging.handlers import APILogHandler
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Failed, get_state_exception
from prefect.utilities.urls import url_for
from pydantic import Field

from flows.parameters import Parameter
from flows.progress import shown_on_the_flow_run
from resnet_pipeline.adapters.mlflow.descriptions import FLOW_RUN_ID, FLOW_RUN_NAME, FLOW_RUN_PAGE
from resnet_pipeline.errors import NoClusterError, StoppedError, UnavailableError, UserError
from resnet_pipeline.logs import as_json, configured, handled
from resnet_pipeline.settings import cleaned

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


_on_stderr = logging.StreamHandler()  # one, so that a flow inside a flow writes no line twice
_to_the_run = APILogHandler()
_to_the_run.addFilter(lambda record: bool(FlowRunContext.get() or TaskRunContext.get()))


def logged(function: Callable[P, R]) -> Callable[P, R]:
    """Let log and progress go to the flow run's page while the function runs, and its end be the run's state.

    What Prefect's console shows of it is Prefect's to decide, but JSON lines for a collector are on stderr too; the
    command line, if it has started the flow, shows its own. A run that was stopped is Cancelled. What the user can mend
    is the message of a Failed state, and no traceback; whoever has called the flow gets the exception itself.
    """

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        with handled(_to_the_run, level=logging.INFO), shown_on_the_flow_run():
            try:
                with configured(_on_stderr) if deployment.id and as_json() else nullcontext():
                    return function(*arguments, **named)
            except (StoppedError, KeyboardInterrupt, TerminationSignal) as stop:
                if deployment.id:  # on the command line the error itself says it
                    _log.warning("stopped; to go on: %s", _again())
                text = str(stop) if isinstance(stop, StoppedError) else "interrupted"
                return cast(R, Cancelled(message=text, data=stop))
            except UserError as error:
                return cast(R, Failed(message=cleaned(str(error)), data=error))

    return run


_SECONDS_BETWEEN_TRIES = [10.0, 60.0, 300.0]
_MAY_PASS = (UnavailableError, ConnectionError, TimeoutError)


def _may_help(task: object, task_run: TaskRun, state: State[Any]) -> bool:
    """Return whether a task that has failed is tried again: not if the user has to mend something first."""
    error = state.data
    if isinstance(error, NoClusterError) and task_run.run_count <= 1:
        return False  # more likely a wrong address: there was no cluster before that could have been lost
    return isinstance(error, _MAY_PASS)


def phase(
    name: str, run_name: str | Callable[[], str], *, timeout: float | None = None
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a task of a part of a flow's work: ``name`` is the task's, ``run_name`` its runs', made of the parameters.

    It is tried again three times, within minutes, if a service was away, and for no other reason. Its error is one line
    in the log: `outcome` raises it in the flow. It may take ``timeout`` seconds; None: as long as it likes.

    Example::

        @phase("stage", "stage · {name}")
        def stage(source: str, name: str) -> StagedDataset: ...
    """

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        return task(
            name=name,
            task_run_name=run_name,
            cache_policy=NO_CACHE,  # the jobs know what is done, and a key would be made of all scores
            retries=len(_SECONDS_BETWEEN_TRIES),
            retry_delay_seconds=_SECONDS_BETWEEN_TRIES,
            retry_condition_fn=_may_help,
            timeout_seconds=timeout,
        )(_briefly(function))

    return decorate


def _briefly(function: Callable[P, R]) -> Callable[P, R]:
    """Let a task's error be one line in the log."""

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
    """Return what a task has returned; raise the error that a `phase` has made a state of."""
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


def flow_run_tags() -> dict[str, str]:
    """Return what the MLflow run of a training says of the flow run that it is part of: id, name and page."""
    page = url_for("flow-run", obj_id=flow_run.id) if flow_run.id else None
    tags = {FLOW_RUN_ID: flow_run.id, FLOW_RUN_NAME: flow_run.name, FLOW_RUN_PAGE: cleaned(page or "")}
    return {key: value for key, value in tags.items() if value}
