"""Progress: one interface, whatever shows it."""

from __future__ import annotations

import itertools
import logging

import pytest

from resnet_pipeline import progress as module
from resnet_pipeline.errors import UserError
from resnet_pipeline.progress import BYTES, Bar, LogLines, displayed_also_on, displayed_on, priced, progress
from tests.recording import Recording


@pytest.fixture
def clock(monkeypatch):
    """Return a clock that stands still until it is set: a list of one number."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_display_sees_the_beginning_every_step_and_the_end():
    display = Recording()
    with displayed_on(display), progress("packing", total=10, before=4) as bar:
        bar.advance(2)
        bar.reach(10, detail="1 refused")
    assert [(s.reached, s.detail) for s in display.shown] == [(4, ""), (6, ""), (10, "1 refused")]
    assert display.before == {"packing": 4} and display.ended == ["packing"]


def test_a_bar_ends_where_its_work_fails():
    display = Recording()
    with pytest.raises(ValueError, match="why"), displayed_on(display), progress("packing", total=10):
        raise ValueError("why")
    assert display.ended == ["packing"]


def test_the_rate_leaves_out_what_was_done_before_and_the_preparation(clock):
    bar = Bar("packing", total=1000, before=400)
    clock[0] += 60
    bar.reach(400)  # still preparing
    clock[0] += 2
    bar.advance(100)
    assert (bar.speed(), bar.left()) == ("50 images/s", "0:10 left")
    bar.reach(1000)
    assert bar.left() == "" and bar.counts() == "1,000/1,000 images"


def test_units_of_several_images_and_bytes_have_their_own_rates(clock):
    steps = Bar("training", total=100, unit="steps", images_per_unit=256)
    steps.reach(10, rate=2.0)
    assert (steps.counts(), steps.speed(), steps.left()) == ("10/100 steps", "512 images/s", "0:45 left")
    size = Bar("hashing", total=3 * 10**9, unit=BYTES)
    clock[0] += 5
    size.advance(10**9)
    assert (size.counts(), size.speed(), size.left()) == ("1.0/3.0 GB", "200 MB/s", "0:10 left")
    days = Bar("training", total=600_000, unit="steps")
    days.reach(1, rate=2.0)
    assert days.left() == "83:19:59 left"
    assert Bar("of an unknown number", unit="files").counts() == "0 files"


@pytest.mark.parametrize(("steps", "speed"), [(1800, "1,800"), (9.96, "10"), (1.44, "1.4"), (0.4, "0.4"), (0, "0")])
def test_a_slow_rate_is_not_0(steps, speed):
    bar = Bar("training", total=9000, unit="steps")
    bar.reach(1, rate=steps)
    assert bar.speed() == f"{speed} images/s"


def test_elsewhere_a_line_is_logged_every_few_seconds_and_at_the_end(clock, caplog):
    caplog.set_level(logging.INFO, "resnet_pipeline.progress")
    with displayed_on(LogLines(seconds=5)), progress("packing", total=100) as bar:
        for _ in range(100):
            clock[0] += 1
            bar.advance(detail="0 refused")
    assert len(caplog.messages) == 100 // 6 + 1
    assert caplog.messages[0] == "packing  6/100 images  0 refused  1 images/s  1:34 left"
    assert caplog.messages[-1] == "packing  100/100 images  0 refused  1 images/s"


def test_days_of_work_log_hundreds_of_lines_not_tens_of_thousands(clock, caplog):
    caplog.set_level(logging.INFO, "resnet_pipeline.progress")
    shown = []
    with displayed_on(LogLines()), progress("training", total=600_000, unit="steps") as bar:
        for _ in range(3 * 24 * 3600 // 2):
            clock[0] += 2
            bar.advance()
            if any(line.endswith(" left") for line in caplog.messages):
                shown.append(clock[0])
            caplog.clear()
    assert 400 < len(shown) < 800
    pauses = [later - earlier for earlier, later in itertools.pairwise(shown)]
    assert pauses[0] <= 6 and max(pauses) <= 602, "often at first, and every ten minutes to the end"


def test_another_display_shows_the_bars_too_once_even_if_it_is_added_twice():
    outer, inner = Recording(), Recording()
    with displayed_on(outer):
        with displayed_also_on(inner), displayed_also_on(inner), progress("packing", total=10) as bar:
            bar.reach(10)
        with progress("alone"):
            pass
    assert [s.title for s in outer.shown] == ["packing", "packing", "alone"]
    assert [s.title for s in inner.shown] == ["packing", "packing"]
    assert (outer.ended, inner.ended) == (["packing", "alone"], ["packing"])


def test_work_that_was_broken_off_logs_no_end(caplog):
    caplog.set_level(logging.INFO, "resnet_pipeline.progress")
    with pytest.raises(KeyboardInterrupt), progress("packing", total=100) as bar:
        bar.advance(3)
        raise KeyboardInterrupt
    assert caplog.messages == []


def test_long_work_says_what_it_will_take_and_cost_and_corrects_itself(clock, caplog):
    caplog.set_level(logging.INFO, "resnet_pipeline.progress")
    with priced(24.0), displayed_on(Recording()), progress("training", total=100_000, unit="steps") as bar:
        bar.reach(0, detail="starting workers")
        clock[0] += 20
        bar.reach(100, rate=10.0)  # the work's own pace, without its validations
        for step in range(200, 10_000, 100):
            clock[0] += 20  # twice as long with them
            bar.reach(step, rate=10.0)
    assert caplog.messages == [
        "training: about 2.8 hours to go, 66.60 at 24.00 an hour",
        "training: about 5.5 hours to go, 132.80 at 24.00 an hour",
    ]


def test_a_resumed_work_s_forecast_counts_what_is_left_and_a_short_one_has_none(clock, caplog, monkeypatch):
    monkeypatch.setenv("RESNET_PIPELINE_PRICE", "6")
    caplog.set_level(logging.INFO, "resnet_pipeline.progress")
    with displayed_on(Recording()), progress("testing", total=60_000) as bar:
        bar.reach(30_000)  # kept from before
        for _ in range(3):
            clock[0] += 6
            bar.advance(60)
    assert caplog.messages == ["testing: about 50 minutes to go, 4.98 at 6.00 an hour"]
    with displayed_on(Recording()), progress("testing", total=3_000) as bar:
        for _ in range(20):
            clock[0] += 5
            bar.advance(100)
    assert len(caplog.messages) == 1


def test_a_price_is_positive(monkeypatch):
    monkeypatch.setenv("RESNET_PIPELINE_PRICE", "-1")
    with pytest.raises(UserError, match="RESNET_PIPELINE_PRICE must be a positive number, not '-1'"):
        Bar("training")
