from __future__ import annotations

import pytest

from resnet_pipeline.config import ConfigError
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.errors import UserError
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.workers import Workers


@pytest.mark.parametrize(
    ("value", "counts", "text"),
    [(2, (2,), "2"), ("4", (4,), "4"), ("1-8", (1, 2, 4, 8), "1-8"), ("3 - 7", (4,), "3-7"), ("2-2", (2,), "2")],
)
def test_a_number_or_a_range_gives_the_counts_that_divide_the_batch(value, counts, text):
    workers = Workers.of(value)
    assert workers.counts(get_recipe("imagenet/resnet50")) == counts  # 8 micro-batches of 32
    assert str(workers) == text and Workers.of(text) == workers


@pytest.mark.parametrize("value", ["", "0", "-1", "4-1", "1-", "two", "1-2-3", "1.5", 0])
def test_anything_else_is_refused_with_what_was_given(value):
    with pytest.raises(UserError, match=r"--workers .*neither a number nor a range"):
        Workers.of(value)


def test_a_range_without_a_count_that_divides_the_batch_says_which_could():
    with pytest.raises(ConfigError, match="1, 2, 4, 8 could"):
        Workers.of("5-7").counts(with_overrides(get_recipe("imagenet/resnet50"), {}))
