"""How a function becomes a command: options from the shared parameters, and a result written for machines."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TextIO, get_args, get_origin, get_type_hints

import typer

from flows.parameters import Parameter
from resnet_pipeline.cli.console import shown
from resnet_pipeline.errors import UserError, did_you_mean
from resnet_pipeline.files import check_writable, json_text, write_json
from resnet_pipeline.records import plain


def complete_recipe(incomplete: str) -> list[str]:
    """Return the recipes that a word may become, for the shell's completion."""
    from resnet_pipeline.recipes import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def complete_dataset(context: typer.Context, incomplete: str) -> list[str]:
    """Return the staged datasets that a word may become, for the shell's completion; none if they can't be listed."""
    from resnet_pipeline.data.dataset import dataset_names
    from resnet_pipeline.workspace import Workspace

    try:
        names = dataset_names(Workspace.of(context.params.get("root")))
    except UserError:
        return []
    return sorted(name for name in names if name.startswith(incomplete))


Root = Annotated[
    Path | None,
    typer.Option(
        "--root",
        help="Where everything is kept: datasets, runs, scores, reports. Default: RESNET_PIPELINE_ROOT, else ./work",
    ),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", help="Also write the result to this file, for machines; - is stdout, without the tables."),
]
Elsewhere = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        metavar="N×GPU",
        help="Say what it would take on so many v100, a100 or h100 (8xh100), from published rates, and start nothing.",
        show_default=False,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No messages and no progress, only results and warnings.")]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function as typer takes it: its shared parameters as options, what was typed read and checked.

    What the work says and how far it is appears on stderr (``cli.console``), unless ``--quiet``, which every command
    gets here. The function itself stays as it is, and takes values of its own types.
    """
    hints = get_type_hints(function, include_extras=True)
    shared = {name: hint for name, hint in hints.items() if _parameter_of(hint) is not None}

    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*, quiet: bool, **typed: Any) -> None:
        with shown(quiet=quiet), _json_alone(typed.get("json_file"), typed.get("launcher")):
            _check_outputs(typed)
            read = {name: _read(name, hint, typed[name]) for name, hint in shared.items()}
            function(**(typed | read))

    typer_s = hints | {name: _option(name, hint) for name, hint in shared.items()} | {"quiet": Quiet}
    parameters = [p.replace(annotation=typer_s[name]) for name, p in signature.parameters.items()]
    parameters.append(inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet))
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = typer_s
    return run


def _parameter_of(hint: Any) -> Parameter | None:
    return next((item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Parameter)), None)


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the words that may be typed, none if there is no such list; the hint may be of them or None."""
    kind = get_args(hint)[0]
    return next((get_args(each) for each in (kind, *get_args(kind)) if get_origin(each) is Literal), ())


def _option(name: str, hint: Any) -> Any:
    """Return the ``Annotated`` type that makes an option, or an argument, of a parameter."""
    parameter, choices = _parameter_of(hint), _choices(hint)
    assert parameter is not None
    kind = get_args(hint)[0]
    if choices:
        kind = str | None if NoneType in get_args(kind) else str
    elif parameter.read is not None:
        kind = (list[str] if parameter.repeated else str) | None
    if parameter.argument:
        metavar = parameter.metavar or "|".join(choices) or None
        return Annotated[kind, typer.Argument(metavar=metavar, help=parameter.help, show_default=False)]
    return Annotated[
        kind,
        typer.Option(
            *(parameter.flags or (f"--{name.replace('_', '-')}",)),
            help=parameter.help,
            show_default=not any(
                flag.startswith(" /") for flag in parameter.flags
            ),  # a switch that is on has no word for it
            autocompletion=complete_dataset if name == "dataset" else None,
            metavar=parameter.metavar or "|".join(choices) or None,
            min=parameter.least if parameter.read is None else None,
            max=parameter.most if parameter.read is None else None,
        ),
    ]


def _read(name: str, hint: Any, typed: Any) -> Any:
    """Return the value of what was typed; UserError if it is none of the choices."""
    parameter, choices = _parameter_of(hint), _choices(hint)
    if choices and typed is not None and typed not in choices:
        near = did_you_mean(typed, choices)
        shown = name if parameter is not None and parameter.argument else f"--{name.replace('_', '-')}"
        raise UserError(f"{shown} must be one of {', '.join(choices)}, not {typed!r}{near}")
    if parameter is None or parameter.read is None or typed is None:
        return typed
    return parameter.read(typed)


_OUTPUTS = {"output": "the output", "figure": "--figure", "json_file": "--json"}
_INPUTS = ("model", "models", "members", "weights", "folder", "file", "classes", "real_labels", "runs")


def _check_outputs(typed: Mapping[str, Any]) -> None:
    """Raise UserError, before any work, for a file to write that can't be, or is one that is read or written too."""
    written: dict[str, Path] = {name: typed[name] for name in _OUTPUTS if typed.get(name) is not None}
    read = [file for name in _INPUTS for file in _files_of(typed.get(name))]
    for name, path in written.items():
        if _is_stdout(path) or not (path.is_file() or not path.exists()):
            continue
        if name != "json_file":
            check_writable(path)
        others = [what for other, what in _OUTPUTS.items() if other != name and _same(path, written.get(other))]
        others += [f"{file}, which is to be read" for file in read if _same(path, file)]
        if others:
            raise UserError(f"{_OUTPUTS[name]} {path} is also {others[0]}; name another file")


def _files_of(typed: str | Path | Sequence[str] | None) -> Iterator[Path]:
    """Yield the files that an argument may stand for: itself, what NETWORK=FILE#ema names, and those of a run."""
    for text in [typed] if isinstance(typed, (str, Path)) else typed or []:
        for path in {Path(text), Path(str(text).partition("=")[2].removesuffix("#ema") or text)}:
            yield path
            if (path / "config.json").is_file():
                yield from path.iterdir()


def _same(path: Path, other: Path | None) -> bool:
    return other is not None and os.path.realpath(path) == os.path.realpath(other)


_stdout: ContextVar[TextIO | None] = ContextVar("stdout_of_json", default=None)
"""Standard output, if JSON has it for itself."""


@contextmanager
def _json_alone(path: Path | None, launcher: str | None) -> Iterator[None]:
    """Inside, what a command prints goes to stderr if its JSON goes to standard output, under whichever name.

    UserError if it can't be written; of torchrun's processes the first one finds that out when it writes it.
    """
    if path is None or not _is_stdout(path):
        if path is not None and launcher != "torchrun":
            with _named(path):
                check_writable(path)  # now, and not after hours of training
        yield
        return
    token = _stdout.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _stdout.reset(token)


def _is_stdout(path: Path) -> bool:
    try:
        return str(path) == "-" or os.path.samestat(path.stat(), os.fstat(1))
    except OSError:  # no such file yet
        return False


def write_result(path: Path | None, value: Any) -> None:
    """Write a result, a record or plain values, as JSON if a path was given; UserError if it can't be written."""
    if path is None:
        return
    if (stdout := _stdout.get()) is not None:
        print(json_text(plain(value)), end="", file=stdout, flush=True)
        return
    with _named(path):
        write_json(path, plain(value))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--json {path} can't be written: {error.strerror or error}") from None
