"""A run's result: the bytes of its file, and what older files lack."""

from __future__ import annotations

import json

import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.training.result import RunResult

# as version 0.1.0 wrote it
OLD = """{
  "best": {
    "step": 6,
    "top1": 86.53846153846153
  },
  "device": "cpu",
  "images": 768,
  "images_per_second": 812.5,
  "seconds": 0.945,
  "steps": 12,
  "train_error": 80.46875,
  "train_loss": 2.1234567,
  "validation": {
    "images": 364.0,
    "top1": 84.06593406593407,
    "top5": 38.73626373626374
  },
  "weights_sha256": "0123abcd",
  "workers": 1
}
"""
NEW = OLD.replace('  "seconds"', '  "precision": "float32",\n  "seconds"')


@pytest.mark.parametrize("text", [OLD, NEW], ids=["without precision", "with it"])
def test_a_result_is_written_with_the_bytes_it_was_read_from(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    RunResult.read(tmp_path / "a.json").write(tmp_path / "b.json")
    assert (tmp_path / "b.json").read_text() == text


def test_a_result_has_its_values_and_an_older_one_no_precision(tmp_path):
    (tmp_path / "r.json").write_text(OLD)
    result = RunResult.read(tmp_path / "r.json")
    assert (result.steps, result.validation["top5"], result.best["step"]) == (12, 38.73626373626374, 6)
    assert result.precision is None and RunResult.read(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "12"}, "steps must be of type int, not '12'"),
        ({"validation": {"top1": "?"}}, r"validation\.top1 must be of type float, not '\?'"),
        ({"weights_sha256": None}, "weights_sha256 must be of type str, not None"),
    ],
)
def test_a_damaged_result_names_file_and_field(tmp_path, change, message):
    (tmp_path / "r.json").write_text(json.dumps(json.loads(NEW) | change))
    with pytest.raises(UserError, match=rf"r\.json is damaged \({message}\); remove it to finish the run again"):
        RunResult.read(tmp_path / "r.json")
    (tmp_path / "r.json").write_text(NEW[:100])
    with pytest.raises(UserError, match=r"r\.json is damaged"):
        RunResult.read(tmp_path / "r.json")
