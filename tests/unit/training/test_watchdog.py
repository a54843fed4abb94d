from __future__ import annotations

import signal
import subprocess
import sys
import time

from resnet_pipeline.training.watchdog import EXIT_STATUS

WAITING = """
from resnet_pipeline.training.watchdog import Watchdog
dog = Watchdog(%s, lambda: "after step 7")
print("ready", flush=True)
input()
dog.alive()
"""


def start(limit: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING % limit],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_process_that_hangs_is_ended_and_says_where():
    with start(0.5) as process:
        assert process.wait(60) == EXIT_STATUS
        assert "no progress in 0 s after step 7: this process hangs" in process.stderr.read()


def test_a_process_that_was_stopped_and_continued_has_not_hung():
    with start(4) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(5)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.3)  # in which a watch by the clock would end it
        process.communicate("go on\n", timeout=60)
        assert process.returncode == 0
