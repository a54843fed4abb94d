"""Names from outside: any of them can be kept, shown, and had back."""

from __future__ import annotations

import json
import logging
import os
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resnet_pipeline.logs import Text
from resnet_pipeline.names import escaped, hidden, is_other, original, printable

NAMES = st.binary(max_size=12).map(os.fsdecode) | st.text("\\x0f7eau\n\x1b\u202e\udc80é", max_size=9)


@pytest.mark.slow
@given(NAMES)
@settings(max_examples=500, deadline=None)
@example("a\\xff")
@example("a\udcff")
@example("\\\\\\u202e")
def test_a_name_can_be_had_back_and_is_fit_for_every_place(name):
    shown = escaped(name)
    assert original(shown) == name
    # no control character, surrogate or end of a line, and nothing that turns the direction of writing
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"}
    turning = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not {unicodedata.bidirectional(c) for c in shown} & turning
    assert pa.array([shown]).to_pylist() == [json.loads(json.dumps(shown, ensure_ascii=False).encode())] == [shown]


@pytest.mark.slow
@given(NAMES, NAMES)
@settings(max_examples=500, deadline=None)
@example("a\udcff", "a\\xff")
def test_two_names_are_never_one(one, other):
    assert (escaped(one) == escaped(other)) == (one == other)


def test_what_needs_no_escape_stays_as_it_is():
    for name in ("n01440764_10026.JPEG", "Ünïcode 猫.jpg", "C:\\photos\\x.jpg", "100%.jpg", "a\\x.jpg", "a[b]:c:"):
        assert escaped(name) == name


def test_bytes_and_control_characters_are_escaped_as_python_writes_them():
    assert escaped("caf\udce9\n\x1b[31m") == "caf\\xe9\\x0a\\x1b[31m"
    assert escaped("a\u202eb\x9b") == "a\\u202eb\\u009b"


def test_a_line_of_the_log_moves_no_cursor():
    record = logging.LogRecord("resnet_pipeline", logging.INFO, "", 0, "file %s\nnext", ("\x1b[2Jx\r",), None)
    assert Text().format(record) == "file \\x1b[2Jx\\x0d\nnext" == printable("file \x1b[2Jx\r\nnext")


def test_leavings_of_systems_and_files_that_are_no_images_are_known_by_name():
    for name in ("a/.DS_Store", "Thumbs.db", "x/Desktop.ini", "__MACOSX/a/b.jpg", "$RECYCLE.BIN/a.jpg", "@eaDir/x.jpg"):
        assert hidden(name)
    for name in ("labels.csv", "n0_boxes.TXT", "a/b.xml"):
        assert is_other(name) and not hidden(name)
    for name in ("a.jpg", "a.JPEG", "0001", "a.heic", "csv", "README"):
        assert not is_other(name) and not hidden(name)
