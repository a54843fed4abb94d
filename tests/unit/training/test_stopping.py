from __future__ import annotations

import os
import signal

import pytest

from resnet_pipeline.training.stopping import stop_on_signals


def test_sigterm_may_come_often_and_a_second_ctrl_c_leaves():
    with stop_on_signals(leave_at_once=True) as stop:
        assert not stop()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)
