"""Configs as plain JSON values and back, changed by assignments, their hash, and what their fields mean."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import itertools
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

from resnet_pipeline.config import ConfigError, RunConfig
from resnet_pipeline.errors import did_you_mean

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON types."""
    return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(config))))


def from_dict(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Build a config from plain JSON types; an unknown, missing or ill-typed field raises ConfigError with its name."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown field {where}{key}{did_you_mean(key, fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"missing field {where}{name}")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()})


def with_overrides(config: T, assignments: Iterable[str]) -> T:
    """Return the config with ``key=value`` assignments applied; keys are dotted paths, values JSON or plain words.

    A run of other length (``steps``) has its schedule stretched to it: ``schedule.warmup`` and
    ``schedule.boundaries`` change in proportion, unless they are assigned too.

    >>> with_overrides(config, ["optim.lr=0.05", "augment.shorter_side=[256, 288]"])
    """
    values = to_dict(config)
    assigned: set[str] = set()
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"{assignment!r} is not of the form key=value")
        target = values
        path = path.strip()
        assigned.add(path)
        *parents, last = path.split(".")
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                raise ConfigError(f"unknown field {path}{did_you_mean(parent, target)}")
            target = target[parent]
        if last not in target:
            raise ConfigError(f"unknown field {path}{did_you_mean(last, target)}")
        try:
            target[last] = json.loads(text)
        except json.JSONDecodeError:
            target[last] = text.strip()
    if isinstance(config, RunConfig):
        _stretch(values, config, assigned)
    return from_dict(type(config), values)


def _stretch(values: dict[str, Any], config: RunConfig, assigned: set[str]) -> None:
    """Fit the schedule to a changed number of steps, in place; what was assigned stays."""
    before, steps, schedule = config.steps, values["steps"], values["schedule"]
    if not isinstance(steps, int) or steps < 1 or steps == before or not isinstance(schedule, dict):
        return  # nothing to stretch, or a mistake that from_dict will name

    def stretched(iteration: int) -> int:
        return max(1, round(iteration * steps / before))

    if "schedule.warmup" not in assigned and config.schedule.warmup:
        schedule["warmup"] = min(stretched(config.schedule.warmup), steps - 1)
    if "schedule.boundaries" not in assigned:
        boundaries = {stretched(b) for b in config.schedule.boundaries}
        schedule["boundaries"] = sorted(b for b in boundaries if b < steps)


def config_hash(config: Any) -> str:
    """Return the first 8 hexadecimal digits of the SHA-256 of the config as canonical JSON."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True)
class Described:
    """A field of a config: its dotted name, its value as plain JSON types, and the text beside it in ``config``."""

    field: str
    value: Any
    text: str


def described(config: Any, *, where: str = "") -> Iterator[Described]:
    """Yield every field of a config, those of its groups in their places; the names are those of assignments."""
    texts, plain = field_texts(type(config)), to_dict(config)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from described(value, where=f"{where}{f.name}.")
        else:
            yield Described(f"{where}{f.name}", plain[f.name], texts[f.name])


def field_texts(cls: type) -> dict[str, str]:
    """Return the text under each field of a dataclass, as one line; Python itself does not keep these strings."""
    (definition,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for statement, following in itertools.pairwise(definition.body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            return from_dict(hint, value, where=f"{where}.")
        raise ConfigError(f"{where} must be a group of fields, not {value!r}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where} must be one of {', '.join(map(str, args))}, not {value!r}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise ConfigError(
                f"{where} must be a list{'' if args[-1] is Ellipsis else f' of {len(args)}'}, not {value!r}"
            )
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        return tuple(
            _convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value
