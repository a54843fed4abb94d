from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from resnet_pipeline.parallel import Ahead, map_ahead


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
    until = time.monotonic() + 120
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


def test_calls_come_in_order_and_no_more_are_begun_than_asked():
    begun, yielded = [], []

    def call(number: int) -> int:
        begun.append(number)
        time.sleep(0.01 * (number % 3))
        return number * number

    with ThreadPoolExecutor(8) as pool:
        for value in map_ahead(pool, call, range(30), 4):
            yielded.append(value)
            assert len(begun) <= len(yielded) + 4
    assert yielded == [number * number for number in range(30)]


def test_what_has_not_begun_when_a_call_fails_never_does():
    begun = []

    def call(number: int) -> int:
        begun.append(number)
        time.sleep(0.05)
        return 1 // number

    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        list(map_ahead(pool, call, [0, 1, 2, 3, 4], 5))
    assert len(begun) <= 2


def test_cores_are_those_that_the_process_may_use():
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from resnet_pipeline.parallel import cores; print(cores())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
