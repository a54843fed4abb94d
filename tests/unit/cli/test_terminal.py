"""Tables on terminals of several widths."""

from __future__ import annotations

import pytest

from resnet_pipeline.cli.terminal import ErrorLine, print_errors
from resnet_pipeline.evaluation.ensemble import IntervalErrors, Measured

ERRORS = IntervalErrors(top1=65.5, top1_interval=(59.0, 72.0), top5=10.5, top5_interval=(6.0, 15.0))
LINE = ErrorLine("models:/cifar10-resnet20/1", Measured(images=200.0, errors=ERRORS), images_per_second=121.5)


@pytest.mark.parametrize(("columns", "width"), [(None, 120), ("80", 80), ("200", 200)])
def test_numbers_never_break_and_a_row_fits(capsys, monkeypatch, columns, width):
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    print_errors("center on mine", [LINE])
    out = capsys.readouterr().out
    assert all(number in out for number in ("65.50", "59.00–72.00", "10.50", "6.00–15.00", "122"))
    assert max(map(len, out.splitlines())) <= width
    assert ("top-1 error %" in out and LINE.model in out) == (width > 80)
