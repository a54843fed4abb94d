from __future__ import annotations

import threading
import time

import pytest

from resnet_pipeline.parallel import Ahead


def test_items_come_in_order_and_the_error_after_those_before_it():
    def items():
        yield from range(20)
        raise KeyError("broken")

    seen = []
    with pytest.raises(KeyError, match="broken"):
        for item in Ahead(items(), 3):
            seen.append(item)
    assert seen == list(range(20))


def test_it_works_ahead_but_no_further_than_asked():
    made = []

    def items():
        for item in range(100):
            made.append(item)
            yield item

    ahead = Ahead(items(), 4)
    assert next(ahead) == 0
    until = time.monotonic() + 5
    while len(made) < 6 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == 6, "one was taken, four wait, one waits for a place"
    ahead.close()
    assert list(ahead) == [] and len(made) <= 12


def test_closing_ends_the_thread():
    def endless():
        while True:
            yield 0

    before = threading.active_count()
    ahead = Ahead(endless(), 2)
    next(ahead)
    ahead.close()
    ahead.close()
    assert threading.active_count() == before
