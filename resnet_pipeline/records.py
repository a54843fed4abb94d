"""Frozen dataclasses as plain JSON values and back: one reader, which checks names and types, and one writer."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

from resnet_pipeline.errors import UserError, did_you_mean

T = TypeVar("T")
Field = dataclasses.Field[Any]
JsonObject = dict[str, Any]
"""An object that is about to become JSON, or has just been read from it; nothing else is one."""

# What a field's metadata may say of its JSON form: field(default=None, metadata=OMIT_NONE).
OMIT_NONE: Mapping[str, Any] = {"omit_none": True}
"""A field that is left out of the JSON object when it is None."""
INLINE: Mapping[str, Any] = {"inline": True}
"""A record, or a mapping, whose fields stand among those of the record that holds it; nothing of it when it is None.

A mapping takes what no other field does; a record holds one of them at most.
"""


def json_key(name: str) -> Mapping[str, Any]:
    """Return the metadata of a field that is called ``name`` in JSON: a word that Python keeps for itself."""
    return {"key": name}


class RecordError(UserError):
    """A field is unknown, missing or of the wrong type; the text names it."""


def plain(value: Any) -> Any:
    """Return a value as plain JSON types: a record becomes an object of its fields, a path its text.

    >>> from resnet_pipeline.data.manifest import Remark
    >>> plain([Remark("a.jpg", "empty")])
    [{'file': 'a.jpg', 'reason': 'empty'}]
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain_record(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def plain_record(record: Any) -> JsonObject:
    """Return a record as a JSON object."""
    found: JsonObject = {}
    for f in dataclasses.fields(record):
        value = getattr(record, f.name)
        if value is None and (f.metadata.get("omit_none") or f.metadata.get("inline")):
            continue
        if f.metadata.get("inline"):
            found |= plain(value)
        else:
            found[_key(f)] = plain(value)
    return found


def read_record(cls: type[T], values: Any, *, where: str = "") -> T:
    """Return the record of plain JSON types; RecordError names a field that is unknown, missing or ill-typed.

    ``where`` is what field names begin with in errors. Lists become tuples if the field is one.

    >>> from resnet_pipeline.data.manifest import Remark
    >>> read_record(Remark, {"file": "a.jpg", "reason": "empty"})
    Remark(file='a.jpg', reason='empty')
    """
    if not isinstance(values, Mapping):
        raise RecordError(f"{where.rstrip('.') or 'the whole'} must be a group of fields, not {_shown(values)}")
    keys, hints = _keys(cls), _hints(cls)  # type: ignore[arg-type]  # mypy takes no class for hashable
    required = [f for f in dataclasses.fields(cls) if _is_required(f)]  # type: ignore[arg-type]
    # what stands for each field: its own value, or all that an inline one takes
    found: JsonObject = {f.name: {} for f in required if f.metadata.get("inline")}
    for key, value in values.items():
        f = keys.get(key, keys.get(_ANY_OTHER))
        if f is None:
            raise RecordError(f"unknown field {where}{key}{did_you_mean(key, keys)}")
        if f.metadata.get("inline"):
            found.setdefault(f.name, {})[key] = value
        else:
            found[f.name] = value
    for f in required:
        if f.name not in found:
            raise RecordError(f"missing field {where}{_key(f)}")
    places = {f.name: where if f.metadata.get("inline") else f"{where}{key}" for key, f in keys.items()}
    return cls(**{name: _convert(hints[name], value, places[name]) for name, value in found.items()})


def load_record(cls: type[T], path: Path) -> T:
    """Return the record of a JSON file; RecordError, in one line, names the file and the field that is wrong.

    Raises OSError if the file can't be read.

    Example: ``load_record(CheckpointNote, run.checkpoints / "step-00000060.json").sha256``
    """
    return parse_record(cls, path.read_bytes(), name=str(path))


def parse_record(cls: type[T], text: bytes, *, name: str) -> T:
    """Return the record of a JSON text; RecordError, in one line, says ``name`` and the field that is wrong.

    Example: ``parse_record(Remark, b'{"file": "a.jpg", "reason": "empty"}', name="remark.json").file``
    """
    try:
        return read_record(cls, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{name} is no JSON: {error}") from None
    except RecordError as error:
        raise RecordError(f"{name}: {error}") from None


_ANY_OTHER = ""  # stands for the keys that an inline mapping takes


def _key(f: Field) -> str:
    return str(f.metadata.get("key", f.name))


def _is_required(f: Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


@functools.cache
def _keys(cls: Any) -> Mapping[str, Field]:
    """Return the keys of a record's JSON object, each with the field that takes its value."""
    found: dict[str, Field] = {}
    for f in dataclasses.fields(cls):
        if f.metadata.get("inline"):
            hint = _hints(cls)[f.name]
            record: Any = next((a for a in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(a)), None)
            found |= dict.fromkeys(_keys(record) if record else [_ANY_OTHER], f)
        else:
            found[_key(f)] = f
    return found


@functools.cache
def _hints(cls: Any) -> Mapping[str, Any]:
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    # what holds others: their places begin with its own; those of an inline one with nothing more
    within = f"{where}." if where and not where.endswith(".") else where
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return read_record(hint, value, where=within)
    if origin in (typing.Union, types.UnionType):
        if type(value) in args:  # of float | int, say: a number stays what it is
            return value
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value in args:
            return value
        raise RecordError(f"{where} must be one of {', '.join(map(str, args))}, not {_shown(value)}")
    if origin is tuple:
        return _convert_tuple(args, value, where)
    if origin is dict or origin is Mapping:
        if not isinstance(value, Mapping):
            raise RecordError(f"{where} must be a group of fields, not {_shown(value)}")
        return {name: _convert(args[1], item, f"{within}{name}") for name, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise RecordError(f"{where} is too large: {_shown(value)}")
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise RecordError(f"{where} must be of type {hint.__name__}, not {_shown(value)}")
    return value


def _convert_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    open_ended = args[-1] is Ellipsis
    if not isinstance(value, (list, tuple)) or (not open_ended and len(value) != len(args)):
        raise RecordError(f"{where} must be a list{'' if open_ended else f' of {len(args)}'}, not {_shown(value)}")
    kinds = [args[0]] * len(value) if open_ended else args
    return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
