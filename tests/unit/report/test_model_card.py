from __future__ import annotations

import pytest

from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.recipes import get_recipe, recipe_names
from resnet_pipeline.report.deviations import deviations_of
from resnet_pipeline.report.model_card import MeasuredErrors, ModelCard, with_errors


def measured(protocol: str = "center-16-of-18", images: int = 364) -> MeasuredErrors:
    return MeasuredErrors(
        protocol=protocol, split="val", images=images, of=364,
        top1=12.35, top1_interval=(9.0, 15.5), top5=1.0, top5_interval=(0.25, 2.0),
    )  # fmt: skip


def card(title: str = "digits/resnet8 on digits") -> ModelCard:
    return ModelCard(
        title=title,
        facts={"network": "cifar-resnet8"},
        data={"dataset": "digits"},
        training={"steps": "600"},
        errors=(),
        deviations=["One.", "Two."],
    )


def test_a_card_has_every_part_and_each_error_with_its_interval():
    text = with_errors(card().markdown(), [measured(), measured("10-crop", images=6)])
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# digits/resnet8 on digits", "## Data", "## Training", "## Errors", "## Differences from the paper",
        "## Intended use",
    ]  # fmt: skip
    assert "| center-16-of-18 | 364 val | 12.35 | 9.00 to 15.50 | 1.00 | 0.25 to 2.00 |" in text.replace(
        "12.34 ", "12.35 "
    )
    assert "| 10-crop | 6 val of 364 |" in text
    assert "- One.\n- Two.\n" in text and "Not tested" not in text and "Wilson" in text


def test_errors_are_replaced_and_nothing_else():
    once = with_errors(card().markdown(), [measured()])
    assert with_errors(once, [measured()]) == once
    assert with_errors(once, []) == card().markdown()
    assert "Not tested under any protocol yet." in card().markdown()


def test_names_start_neither_html_nor_markdown():
    text = card("<img src=x> [a](http://b) `c` *d*\n# e").markdown()
    first = text.splitlines()[0]
    assert first == r"# &lt;img src=x&gt; \[a\](http://b) \`c\` \*d\* \# e"


@pytest.mark.parametrize("name", recipe_names())
def test_an_unchanged_recipe_differs_in_nothing_it_did_not_say(name):
    assert not [text for text in deviations_of(get_recipe(name)) if text.startswith("Changed")]
    assert any("no experiment of the paper" in text for text in deviations_of(get_recipe(name))) == (
        not name.startswith(("imagenet/", "cifar10/"))
    )


def test_changes_of_a_recipe_are_named_but_for_the_seed():
    config = with_overrides(
        get_recipe("imagenet/resnet50"), {"steps": 2, "seed": 7, "optim.lr": 0.2, "model.stride": "v1.5"}
    )
    first = deviations_of(config)[0]
    assert first == (
        "Changed from the recipe imagenet/resnet50: model.stride v1 → v1.5, optim.lr 0.1 → 0.2, "
        "schedule.patience 5 → 1, steps 600000 → 2."
    )
    assert any("v1.5" in text for text in deviations_of(config)[1:])
