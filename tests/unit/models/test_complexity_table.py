from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.models import model_names
from resnet_pipeline.models.complexity import complexity_table

GOLDEN = Path(__file__).parents[2] / "golden" / "models_complexity.json"


def current():
    return json.loads(json.dumps({row.name: asdict(row) for row in complexity_table()}))


@pytest.mark.slow
def test_the_table_is_the_golden_one():
    golden = json.loads(GOLDEN.read_text())
    assert current() == golden, f"if the change is meant: python {Path(__file__).name}, run in its folder"
    assert list(golden) == [*model_names(), "vgg16", "vgg19"]


@pytest.mark.slow
def test_152_layers_are_eight_times_deeper_than_vgg_and_less_complex():
    resnet, vgg16, vgg19 = complexity_table(["resnet152", "vgg16", "vgg19"])
    assert resnet.depth == 8 * vgg19.depth
    assert resnet.cost.multiply_adds < vgg16.cost.multiply_adds < vgg19.cost.multiply_adds
    # section 1 and 4.1: 11.3 against 15.3 and 19.6 billion; VGG-16's 15.3 leaves its fully connected layers out
    assert round(resnet.cost.multiply_adds / 1e9, 1) == 11.3
    assert int(vgg16.cost.stages[0].multiply_adds / 1e8) / 10 == 15.3
    assert round(vgg19.cost.multiply_adds / 1e9, 1) == 19.6


def test_an_unknown_network_is_refused():
    with pytest.raises(UserError, match="vgg11"):
        complexity_table(["vgg11"])


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(current(), indent=1) + "\n")
