from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from resnet_pipeline.report.content import Curve
from resnet_pipeline.report.figures import error_figure, loss_figure
from resnet_pipeline.report.page import write_report
from resnet_pipeline.report.terminal import duration, human, render_table
from tests.sample_report import sample_report


class Checker(HTMLParser):
    """Collects tags and text; complains about tags that are not closed."""

    void = frozenset({"meta", "br", "img", "link", "path", "use", "rect"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(tmp_path):
    path = write_report(sample_report(), tmp_path / "sub" / "report.html")
    return path.read_text()


@pytest.mark.slow
def test_the_page_is_whole_html_with_every_number(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    text = " ".join(" ".join(checker.text).split())
    for part in (
        "1.10 %",
        "0.82 %",
        "digits/resnet8",
        "digits-resnet20 version 1 @candidate",
        "8.75",
        "1,433 train",
        "0.01 worker-hours in 1 start, validations included, 0.24 at 24.00 an hour",
        "270",
        "0.82 0.41 to 1.86",
        "95 % interval 0.41 to 1.86",
    ):
        assert part in text, part


@pytest.mark.slow
def test_the_page_fetches_nothing_and_runs_nothing(page):
    checker = Checker()
    checker.feed(page)
    assert not [t for t, _ in checker.tags if t in ("script", "link", "img", "iframe")]
    outside = [
        v
        for _, a in checker.tags
        for k, v in a.items()
        if k in ("src", "href", "xlink:href") and not (v or "").startswith("#")
    ]
    assert outside == []
    assert "@import" not in page and not re.search(r"url\((?!['\"]?#)", page)


@pytest.mark.slow
def test_names_are_escaped_everywhere(tmp_path):
    hostile = "<script>alert(1)</script>"
    path = write_report(sample_report(name=hostile), tmp_path / "r.html")
    assert "<script" not in path.read_text()
    assert "&lt;script&gt;" in path.read_text()


@pytest.mark.slow
def test_a_single_network_without_validation_needs_no_ensemble(tmp_path):
    assert "ensemble of" not in write_report(sample_report(members=1), tmp_path / "r.html").read_text()


def test_a_network_that_was_not_tested_under_all_protocols_is_shown_without_an_ensemble(tmp_path):
    data = sample_report(members=2)
    first = replace(data.members[0], errors={"center": data.members[0].errors["center"]}, test_images_per_second=None)
    data = replace(data, members=[first, data.members[1]], ensemble=None)
    assert data.best("10-crop") == data.members[1]
    text = write_report(data, tmp_path / "r.html").read_text()
    assert text.count("<td>–</td>") == 3 and "ensemble of" not in text
    few = replace(data.members[0].errors["center"], images=7)
    text = write_report(
        replace(data, members=[replace(first, errors={"center": few})]), tmp_path / "r.html"
    ).read_text()
    assert "7 of 364 images" in text
    console = Console(width=140, record=True)
    with console.capture() as captured:
        console.print(render_table(data))
    (row,) = [line for line in captured.get().splitlines() if data.members[0].name in line]
    assert row.count("–") == 3


def test_final_errors_can_be_read_on_the_axis():
    """On a linear axis up to the first steps' 90 % the final errors, 1 % apart, are two pixels apart."""
    figure = error_figure(sample_report().members)
    assert "logarithmic axis" in figure and "digits/resnet20: " in figure


@pytest.mark.filterwarnings("error")
def test_curves_of_a_single_class_are_drawn_without_a_warning():
    zero = Curve(steps=[1, 2], values=[0.0, 0.0])
    (member,) = sample_report(members=1).members
    flat = [replace(member, train_loss=zero, train_error=zero, val_error=zero)]
    assert all(figure(flat).startswith("<svg") for figure in (error_figure, loss_figure))


def test_the_table_has_a_row_per_member_and_the_ensemble():
    console = Console(width=140, record=True)
    with console.capture() as captured:
        console.print(render_table(sample_report()))
    lines = captured.get().splitlines()
    assert sum("digits/" in line for line in lines) == 3
    (ensemble,) = [line for line in lines if "ensemble of 3" in line]
    assert "0.82" in ensemble and "1.10" in ensemble


def test_units():
    assert [human(n) for n in (12, 1234, 25_557_032, 3.858e9)] == ["12", "1.23\u00a0k", "25.6\u00a0M", "3.86\u00a0G"]
    assert [duration(s) for s in (9.6, 184, 18_184)] == ["10 s", "3:04", "5:03:04"]
