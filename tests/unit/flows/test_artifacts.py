"""What Prefect's artifacts hold; tests/integration/test_services.py looks at the pages."""

from __future__ import annotations

import pytest

from flows.artifacts import error_row, even, key_of, paper_errors
from resnet_pipeline.evaluation.ensemble import IntervalErrors, Measured

TESTED = Measured(
    images=50000.0,
    errors=IntervalErrors(top1=22.8512, top1_interval=(22.4849, 23.2217), top5=6.714, top5_interval=(6.498, 6.937)),
)


def test_keys_are_what_prefect_takes():
    assert key_of("progress", "10-crop: runs/A_b, models:/x@c") == "progress-10-crop-runs-a-b-models-x-c"
    assert key_of("errors", "ä" * 200 + "x") == "errors-x" and len(key_of("a" * 300)) == 100


def test_errors_stand_rounded_beside_their_intervals_and_the_paper_s():
    assert error_row("mine", "10-crop", TESTED, recipe="imagenet/resnet50") == {
        "network": "mine", "protocol": "10-crop", "images": 50000,
        "top-1 error": 22.85, "top-1 interval": "22.48 to 23.22",
        "top-5 error": 6.71, "top-5 interval": "6.50 to 6.94",
        "paper's top-1": 22.85, "paper's top-5": 6.71, "paper's table": "Table 3: ImageNet validation, 10-crop",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "recipe"),
    [("center", "imagenet/resnet50"), ("10-crop", "imagenet-fast/resnet50"), ("10-crop", None)],
)
def test_an_error_that_the_paper_does_not_give_is_compared_with_none(protocol, recipe):
    assert "paper's top-1" not in error_row("mine", protocol, TESTED, recipe=recipe)


def test_a_table_has_the_columns_of_all_its_rows():
    rows = [error_row("a", "center", Measured(images=6.0)), {"network": "all"} | paper_errors(None, 3.57, "Table 5")]
    assert even(rows) == [
        {"network": "a", "protocol": "center", "images": 6, "paper's top-1": "", "paper's top-5": "",
         "paper's table": ""},
        {"network": "all", "protocol": "", "images": "", "paper's top-1": "", "paper's top-5": 3.57,
         "paper's table": "Table 5"},
    ]  # fmt: skip
