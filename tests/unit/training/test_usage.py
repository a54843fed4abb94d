from __future__ import annotations

import json

import pytest

from resnet_pipeline.training.usage import Usage


def test_the_usage_of_all_starts_is_counted_with_their_workers(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [
        (0, 1000.0, {"kind": "resume", "workers": 4}),
        (50, 1100.0, {"kind": "note", "text": "half way"}),
        (100, 1160.0, {"kind": "checkpoint", "pause": 0.1, "bytes": 5}),
        # killed, and started again an hour later
        (100, 5000.0, {"kind": "resume", "workers": 2}),
        (150, 5200.0, {"kind": "note", "text": "on"}),
        (150, 5190.0, {"kind": "note", "text": "a clock that was set back"}),
        (200, 5290.0, {"kind": "done", "seconds": 400.0}),
    ]
    file.write_text("".join(json.dumps({"step": step, "time": time, **entry}) + "\n" for step, time, entry in lines))
    usage = Usage.of(file)
    assert usage.seconds == pytest.approx(160 + 200 + 0 + 100) and usage.starts == 2
    assert usage.worker_seconds == pytest.approx(4 * 160 + 2 * 300)


def test_no_metrics_no_usage(tmp_path):
    assert Usage.of(tmp_path / "metrics.jsonl") == Usage(seconds=0.0, worker_seconds=0.0, starts=0)
