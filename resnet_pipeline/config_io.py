"""Configs as plain JSON values and back, changed (``--set``, ``--steps``), their hash, and what their fields mean."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from resnet_pipeline.config import ConfigError, RunConfig
from resnet_pipeline.errors import did_you_mean
from resnet_pipeline.records import JsonObject, RecordError, plain, plain_record, read_record

T = TypeVar("T")


def to_dict(config: Any) -> JsonObject:
    """Return a config as plain JSON types.

    >>> from resnet_pipeline.config import ViewConfig
    >>> to_dict(ViewConfig(crop=16, resize=18, scales=(18, 20)))
    {'crop': 16, 'resize': 18, 'scales': [18, 20], 'flip': True}
    """
    return plain_record(config)


def from_dict(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Build a config from plain JSON types; an unknown, missing or ill-typed field raises ConfigError with its name.

    >>> from resnet_pipeline.config import ViewConfig
    >>> from_dict(ViewConfig, {"crop": 16, "resize": 18}).resize
    18
    """
    try:
        return read_record(cls, values, where=where)
    except RecordError as error:
        raise ConfigError(str(error)) from None


def parse_assignments(texts: Iterable[str]) -> JsonObject:
    """Return what ``KEY=VALUE`` texts say: values as JSON, and words as they are; the last of equal keys counts.

    >>> parse_assignments(["optim.lr=0.05", "schedule.kind=step"])
    {'optim.lr': 0.05, 'schedule.kind': 'step'}
    """
    found: JsonObject = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"{text!r} is not of the form key=value")
        try:
            found[key.strip()] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            found[key.strip()] = value.strip()
    return found


def assignment(key: str, value: Any) -> str:
    """Return the text that `parse_assignments` reads as this value: JSON, and words as they are.

    >>> assignment("augment.shorter_side", [256, 288])
    'augment.shorter_side=[256,288]'
    """
    if isinstance(value, str) and parse_assignments([f"{key}={value}"]) == {key: value}:
        return f"{key}={value}"
    return f"{key}={json.dumps(value, separators=(',', ':'))}"


def with_overrides(config: T, overrides: Mapping[str, Any]) -> T:
    """Return the config with fields changed: dotted paths to plain JSON values.

    A run of other length (``steps``) has its schedule stretched to it: ``schedule.warmup``, ``schedule.boundaries``
    and, of a plateau, ``schedule.patience`` change in proportion, unless they are changed too. Raises ConfigError,
    naming the field, for one that is unknown, ill-typed or out of bounds.

    >>> from resnet_pipeline.recipes import get_recipe
    >>> with_overrides(get_recipe("imagenet/resnet50"), {"steps": 60, "augment.shorter_side": [256, 288]}).steps
    60
    """
    values = _all_fields(config)
    for path, value in overrides.items():
        target = values
        *parents, last = path.split(".")
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                raise ConfigError(f"unknown field {path}{did_you_mean(parent, target)}")
            target = target[parent]
        if last not in target:
            raise ConfigError(f"unknown field {path}{did_you_mean(last, target)}")
        target[last] = value
    if isinstance(config, RunConfig):
        _stretch(values, config, overrides)
    return from_dict(type(config), values)


def _all_fields(config: Any) -> JsonObject:
    """Return a config as plain JSON types, with the unset fields that `to_dict` leaves out."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {name: _all_fields(v) if dataclasses.is_dataclass(v) else plain(v) for name, v in values.items()}


def flat(config: Any) -> JsonObject:
    """Return the values of all fields, unset ones too, as plain JSON types by dotted name."""
    return flattened(_all_fields(config))


def flattened(values: Mapping[str, Any], prefix: str = "") -> JsonObject:
    """Return what stands in groups, and in groups of groups, by dotted name.

    >>> flattened({"steps": 60, "optim": {"lr": 0.1}})
    {'steps': 60, 'optim.lr': 0.1}
    """
    found: JsonObject = {}
    for key, value in values.items():
        found |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _stretch(values: JsonObject, config: RunConfig, assigned: Mapping[str, Any]) -> None:
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
    # a plateau's patience is counted in evaluations, whose interval stays
    if "schedule.patience" not in assigned and config.schedule.kind == "plateau":
        schedule["patience"] = stretched(config.schedule.patience)


def config_hash(config: Any) -> str:
    """Return the first 8 hexadecimal digits of the SHA-256 of the config as canonical JSON.

    Example: ``config_hash(get_recipe("digits/resnet8"))``
    """
    return hash_of(to_dict(config))


def hash_of(values: Any) -> str:
    """Return the same of a config's plain JSON values, as some version wrote them: later ones have other fields."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True)
class Described:
    """A field of a config: its dotted name, its value as plain JSON types, and the text beside it in ``config``."""

    field: str
    value: Any
    text: str


def described(config: Any, *, where: str = "") -> Iterator[Described]:
    """Yield every field of a config, those of its groups in their places; the names are those of assignments.

    Example: ``[field.name for field in described(get_recipe("digits/resnet8"))]``
    """
    texts, values = field_texts(type(config)), _all_fields(config)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from described(value, where=f"{where}{f.name}.")
        else:
            yield Described(f"{where}{f.name}", values[f.name], texts[f.name])


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
