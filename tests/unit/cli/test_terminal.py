"""Tables on terminals of several widths."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from rich.table import Table

import resnet_pipeline.cli
from resnet_pipeline.cli.console import say
from resnet_pipeline.cli.terminal import ErrorLine, print_errors
from resnet_pipeline.evaluation.ensemble import IntervalErrors, Measured
from resnet_pipeline.report.terminal import print_table

ERRORS = IntervalErrors(top1=65.5, top1_interval=(59.0, 72.0), top5=10.5, top5_interval=(6.0, 15.0))
LINE = ErrorLine("models:/cifar10-resnet20/1", Measured(images=200.0, errors=ERRORS), images_per_second=121.5)


@pytest.mark.parametrize(("columns", "width"), [(None, 120), ("80", 80), ("200", 200), ("20", 78), ("0", 78)])
def test_numbers_never_break_and_a_row_fits(capsys, monkeypatch, columns, width):
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    print_errors("center on mine", [LINE])
    out = capsys.readouterr().out
    assert all(number in out for number in ("65.50", "59.00–72.00", "10.50", "6.00–15.00", "122"))
    assert max(map(len, out.splitlines())) <= width
    assert ("top-1 error %" in out and LINE.model in out) == (width > 90)


def test_of_a_table_that_does_not_fit_no_number_is_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("recipe", "multiply-adds")
    table.add_row("imagenet-fast/resnet152", "11,283,415,040")
    print_table(table)
    assert "imagenet-fast/resnet152 │ 11,283,415,040" in capsys.readouterr().out


def test_a_result_moves_no_cursor(capsys):
    say("a\x1b[31mb\x9b\udcff")
    assert capsys.readouterr().out == "a\\x1b[31mb\\u009b\\xff\n"


def test_commands_print_by_say_and_by_tables_alone():
    prints = {
        (path.stem, ast.unparse(call))
        for path in Path(resnet_pipeline.cli.__file__).parent.glob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"
    }
    raw = {module for module, text in prints if "stderr" not in text and "printable(" not in text}
    # the version, recipes, JSON, and services' own lines hold no names from outside
    assert raw == {"main", "recipes", "options", "services"}
