"""Records as JSON: what is written is read back equal, and what is wrong with a file is said by the field's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from resnet_pipeline.records import INLINE, OMIT_NONE, RecordError, json_key, load_record, plain, read_record


@dataclass(frozen=True)
class Inner:
    name: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    groups: dict[str, Inner]
    basis: tuple[tuple[float, ...], ...]
    limit: int | None = None


OUTER = Outer(inner=Inner("é", (1, 2)), groups={"a": Inner("b")}, basis=((1.0, 0.1), (-0.0, 1e-300)))


def test_a_record_is_read_back_as_it_was_written():
    assert read_record(Outer, json.loads(json.dumps(plain(OUTER)))) == OUTER


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("inner", "name"), 3, "inner.name must be of type str, not 3"),
        (("groups", "a", "sizes"), [1, "2"], r"groups.a.sizes\[1\] must be of type int, not '2'"),
        (("groups", "a", "sizes"), [True], r"groups.a.sizes\[0\] must be of type int, not True"),
        (("groups",), [], "groups must be a group of fields"),
        (("inner",), None, "inner must be a group of fields, not None"),
        (("basis",), [[1.0], 2], r"basis\[1\] must be a list, not 2"),
        (("inner", "nam"), "x", "unknown field inner.nam; did you mean 'name'"),
    ],
)
def test_a_wrong_field_is_named(path, value, message):
    values = plain(OUTER)
    place = values
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(RecordError, match=message):
        read_record(Outer, values)


def test_a_missing_field_is_named_and_one_with_a_default_is_not_missed():
    values = plain(OUTER)
    del values["limit"], values["groups"]["a"]["name"]
    with pytest.raises(RecordError, match=r"missing field groups\.a\.name"):
        read_record(Outer, values)


@dataclass(frozen=True)
class Row:
    label: str = field(metadata=json_key("class"))
    path: str | Path
    inner: Inner | None = field(default=None, metadata=INLINE)
    paper: float | None = field(default=None, metadata=OMIT_NONE)
    kept: float | None = None


def test_results_are_written_under_their_own_names_without_none():
    assert plain(Row("cat", Path("a/b"))) == {"class": "cat", "path": "a/b", "kept": None}
    row = plain([Row("cat", Path("a"), Inner("n", (1,)), 2.0)])
    assert row == [{"class": "cat", "path": "a", "name": "n", "sizes": [1], "paper": 2.0, "kept": None}]


@dataclass(frozen=True)
class Open:
    row: Row
    inner: Inner = field(metadata=INLINE)
    others: Mapping[str, float] = field(metadata=INLINE)


@pytest.mark.parametrize("inner", [None, Inner("n", (1,))])
def test_inline_fields_and_other_names_are_read_back(inner):
    record = Open(Row("cat", "a", inner, 2.0), Inner("m"), {"x": 1.0, "y": 2.5})
    assert read_record(Open, json.loads(json.dumps(plain(record)))) == record


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"row": {"class": "c", "path": "a"}}, "missing field name"),
        ({"row": {"class": "c", "path": "a", "nam": "x"}, "name": "m"}, "unknown field row.nam; did you mean 'name'"),
        ({"row": {"path": "a"}, "name": "m"}, r"missing field row\.class"),
        ({"row": {"class": "c", "path": "a"}, "name": "m", "x": "1"}, "x must be of type float, not '1'"),
        ({"row": {"class": "c", "path": "a"}, "name": "m", "x": 10**400}, "x is too large"),
        (
            {"row": {"class": "c", "path": "a", "name": "n", "sizes": [True]}, "name": "m"},
            r"row\.sizes\[0\] must be of type int",
        ),
    ],
)
def test_a_wrong_inline_field_is_named_by_its_place(values, message):
    with pytest.raises(RecordError, match=f"^{message}"):
        read_record(Open, values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "is no JSON"),
        ("[1]", "the whole must be a group of fields"),
        ('{"name": 1}', "name must be of type str, not 1"),
        ("{}", "missing field name"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(tmp_path, text, message):
    file = tmp_path / "inner.json"
    file.write_text(text)
    with pytest.raises(RecordError, match=message) as error:
        load_record(Inner, file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
