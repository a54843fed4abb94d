"""What a command shows of its work: on stderr, bars on a terminal alone."""

from __future__ import annotations

import logging

import pytest

from resnet_pipeline.cli.console import shown
from resnet_pipeline.progress import progress

_log = logging.getLogger("resnet_pipeline.a.module")


def work() -> None:
    with progress("packing", total=3) as bar:
        _log.info("begun")
        bar.advance(3, detail="1 refused")
    _log.warning("one is lost")


def test_on_a_terminal_a_bar_stays_below_the_messages(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with shown():
        work()
    out, err = capsys.readouterr()
    assert out == "" and "━" in err and "3/3 images" in err and "1 refused" in err
    assert err.index("begun") < err.rindex("3/3 images") < err.index("warning: one is lost")


@pytest.mark.parametrize(
    ("quiet", "said"), [(False, ["begun", "packing  3/3 images", "warning: one is lost"]), (True, ["warning: one is"])]
)
def test_elsewhere_there_are_lines_and_with_quiet_warnings_alone(monkeypatch, capsys, quiet, said):
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    with shown(quiet=quiet):
        work()
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == len(said)
    assert all(line.startswith(words) for line, words in zip(err.splitlines(), said, strict=True))
