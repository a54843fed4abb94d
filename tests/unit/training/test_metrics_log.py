"""Lines of metrics: their bytes are those that every version has written, and are read back equal."""

from __future__ import annotations

import pytest
import torch

from resnet_pipeline.adapters.mlflow.runs import _named
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.metrics_log import (
    CheckpointEntry,
    FinishEntry,
    Line,
    NoteEntry,
    Pace,
    ProfileEntry,
    ResumeEntry,
    SystemEntry,
    TrainEntry,
    ValidationEntry,
)
from resnet_pipeline.training.system import SystemMetrics

PACE = Pace(images_per_second=9.5, data_wait=0.25, step_p50=0.1, step_p95=0.2, step_max=0.3)
TRAIN = {"epoch": 0.5, "lr": 0.1, "gradient_norm": 1.5, "shard_wait_seconds": 0.25, "pace": PACE}
OPTIM = [f"train/optim/{name}" for name in ("learning_rate", "gradient_norm", "epoch")]
PACES = [
    "train/pace/images_per_second",
    "train/pace/data_wait",
    "train/pace/shard_wait_seconds",
    *(f"train/pace/step_seconds_{of}" for of in ("p50", "p95", "max")),
]
LINES = [
    (
        TrainEntry(figures={"loss": 2.0, "error": 87.5}, **TRAIN),
        '"train", "step": 7, "time": 1.125, "epoch": 0.5, "lr": 0.1, "gradient_norm": 1.5, "loss": 2.0, "error": 87.5, '
        '"shard_wait_seconds": 0.25, "images_per_second": 9.5, "data_wait": 0.25, "step_p50": 0.1, "step_p95": 0.2, '
        '"step_max": 0.3',
        ["train/loss", "train/error", *OPTIM, *PACES],
    ),
    (
        TrainEntry(figures={"rms": 2.0}, **TRAIN),
        '"train", "step": 7, "time": 1.125, "epoch": 0.5, "lr": 0.1, "gradient_norm": 1.5, "rms": 2.0, '
        '"shard_wait_seconds": 0.25, "images_per_second": 9.5, "data_wait": 0.25, "step_p50": 0.1, "step_p95": 0.2, '
        '"step_max": 0.3',
        ["train/rms", *OPTIM, *PACES],
    ),
    (
        ValidationEntry(figures={"top1": 12.5, "top5": 1.5, "images": 60}),
        '"validation", "step": 7, "time": 1.125, "top1": 12.5, "top5": 1.5, "images": 60',
        ["val/top1_error", "val/top5_error"],
    ),
    (
        ValidationEntry(figures={"rms_of_test": 0.5}),
        '"validation", "step": 7, "time": 1.125, "rms_of_test": 0.5',
        ["val/rms_of_test"],
    ),
    (
        SystemEntry(values={"cpu_utilization_percentage": 2.5}),
        '"system", "step": 7, "time": 1.125, "cpu_utilization_percentage": 2.5',
        ["system/cpu_utilization_percentage"],
    ),
    (
        CheckpointEntry(pause=0.125, bytes=400),
        '"checkpoint", "step": 7, "time": 1.125, "pause": 0.125, "bytes": 400',
        ["train/checkpoint/pause_seconds", "train/checkpoint/bytes"],
    ),
    (
        ProfileEntry(communication=0.0, compute=0.5, data=0.25, host=0.25, seconds_per_step=0.75),
        '"profile", "step": 7, "time": 1.125, "communication": 0.0, "compute": 0.5, "data": 0.25, "host": 0.25, '
        '"seconds_per_step": 0.75',
        [],
    ),
    (NoteEntry(text="ä disk"), r'"note", "step": 7, "time": 1.125, "text": "\u00e4 disk"', []),
    (ResumeEntry(workers=2), '"resume", "step": 7, "time": 1.125, "workers": 2', []),
    (FinishEntry(seconds=1.5), '"done", "step": 7, "time": 1.125, "seconds": 1.5', []),
]


@pytest.mark.parametrize(("entry", "text", "names"), LINES)
def test_a_line_has_the_bytes_of_every_version_and_is_read_back(entry, text, names):
    line = Line(7, 1.125, entry)
    assert line.to_bytes().decode() == f'{{"kind": {text}}}\n'
    assert Line.parse(line.to_bytes()) == line
    assert list(_named(entry)) == names, "under which MLflow has them, a second task's too"


def test_what_a_log_point_takes_is_as_much_as_the_documents_say():
    wide, share = -1.2345678901234567e-100, 0.98765
    pace = Pace(
        images_per_second=123456.78, data_wait=share, step_p50=1234.56789, step_p95=1234.56789, step_max=1234.56789
    )
    figures = {"loss": wide, "error": wide}
    train = TrainEntry(
        epoch=wide, lr=wide, gradient_norm=wide, figures=figures, shard_wait_seconds=123456.789, pace=pace
    )
    of_gpu = ("memory_usage_megabytes", "memory_usage_percentage", "memory_peak_megabytes", "utilization_percentage")
    names = {*SystemMetrics(torch.device("cpu")).read(), *(f"gpu_{name}" for name in of_gpu)}
    system = SystemEntry(values=dict.fromkeys(names, 1234567.891))
    lines = [Line(600_000, 1790000000.123, entry) for entry in (train, system)]
    assert len(lines[0].to_bytes()) <= 400 and len(lines[1].to_bytes()) <= 650
    values = [len(_named(entry)) for entry in (train, system)]
    assert values[0] == 11 and values[1] <= 12
    paper = get_recipe("imagenet/resnet152")
    points = paper.steps // paper.log_every
    assert points == 12_000 and points * 1050 < 13e6 and points * 23 == 276_000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"kind": "note", "step": 7',
        b"[]",
        b'"note"',
        b'{"kind": "none", "step": 7, "time": 1.0}',
        b'{"kind": [], "step": 7, "time": 1.0}',
        b'{"kind": "note", "step": 7.5, "time": 1.0, "text": "x"}',
        b'{"kind": "note", "step": 7, "time": NaN, "text": "x"}',
        b'{"kind": "note", "step": 7, "time": 1.0, "text": 3}',
        b'{"kind": "validation", "step": 7, "time": 1.0, "top1": "x"}',
        b'{"kind": "validation", "step": 7, "time": 1.0, "top1": 1' + b"0" * 400 + b"}",
        b"[" * 100_000,
    ],
)
def test_a_damaged_line_is_none(text):
    assert Line.parse(text) is None
