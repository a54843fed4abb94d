"""The processes that make shards."""

from __future__ import annotations

import os

from resnet_pipeline.staging.shard_pool import Processes


def test_processes_have_the_environment_of_now(monkeypatch):
    """They are forked from a server that was started with another one."""
    for value in ("first", "second"):
        monkeypatch.setenv("OF_NOW", value)
        processes = Processes(1)
        try:
            assert processes._pool.submit(os.getenv, "OF_NOW").result(60) == value
        finally:
            processes.close()
