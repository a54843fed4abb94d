from __future__ import annotations

import pytest

from resnet_pipeline.config import ConfigError
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.loaders import train_batches
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.phases import PhasedBatches, phases


def growing(first: int = 8):
    return with_overrides(
        get_recipe("digits/resnet8"),
        {
            "steps": 12,
            "batch": 64,
            "growth.first": first,
            "growth.phases": 3,
            "growth.multiple": 4,
            "growth.until": 0.5,
        },
    )


def test_crops_grow_to_the_full_size_and_depend_on_the_step_alone():
    config = growing()
    assert [config.crop_at(step) for step in range(12)] == [8, 8, 8, 12, 12, 12] + [16] * 6
    assert config.crop_at(500) == 16  # the batches after the last step, for batch norm's statistics
    assert list(phases(config, 0, 12)) == [(0, 3), (3, 3), (6, 6)]
    assert list(phases(config, 4, 3)) == [(4, 2), (6, 1)]
    fixed = growing(first=0)
    assert list(phases(fixed, 4, 8)) == [(4, 8)]


def test_imagenet_fast_grows_by_multiples_of_32():
    config = get_recipe("imagenet-fast/resnet50")
    assert sorted({config.crop_at(s) for s in range(0, config.steps, 100)}) == [128, 160, 192, 224]
    assert config.crop_at(config.steps * 3 // 4 - 2) == 192
    assert config.crop_at(config.steps * 3 // 4 + 2) == 224


def test_a_smaller_crop_sees_as_much_of_the_image():
    config = with_overrides(
        get_recipe("imagenet/resnet50"), {"growth.first": 112, "growth.phases": 2, "growth.multiple": 1}
    )
    small, full = config.augment_at(0), config.augment_at(config.steps - 1)
    assert (small.crop, small.shorter_side) == (112, (128, 240))
    assert full == config.augment


def test_batches_of_growing_crops_go_on_at_any_step(digits):
    config = growing()

    def open_loader(start_step, steps, augment):
        return train_batches(
            digits, augment=augment, seed=0, batch=64, micro_batch=32, start_step=start_step, steps=steps
        )

    with PhasedBatches(config, 0, 12, open_loader) as batches:
        whole = list(batches)
    assert [b.images.shape[1] for b in whole] == [8] * 6 + [12] * 6 + [16] * 12
    with PhasedBatches(config, 5, 7, open_loader) as batches:
        rest = list(batches)
    assert len(rest) == 14
    for a, b in zip(whole[10:], rest, strict=True):
        assert a.images.equal(b.images) and a.index.equal(b.index)


@pytest.mark.parametrize(
    ("change", "named"),
    [("growth.first=20", "growth.first"), ("growth.phases=1", "growth.phases"), ("growth.until=1", "growth.until")],
)
def test_growth_that_cannot_be_is_named(change, named):
    with pytest.raises(ConfigError, match=named):
        growing(change)
