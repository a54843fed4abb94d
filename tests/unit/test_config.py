from __future__ import annotations

from dataclasses import fields, is_dataclass

import pytest

from resnet_pipeline.config import ConfigError, RunConfig
from resnet_pipeline.config_io import (
    config_hash,
    described,
    field_texts,
    from_dict,
    parse_assignments,
    to_dict,
    with_overrides,
)
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.paper import PUBLISHED
from resnet_pipeline.models import build_model, depth_of
from resnet_pipeline.recipes import get_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_json_and_names_a_known_network(name):
    config = get_recipe(name)
    assert from_dict(RunConfig, to_dict(config)) == config
    assert config.recipe == name
    assert depth_of(config.model.name) > 0


def groups(config: object) -> list[object]:
    """Return a config and the groups of fields in it."""
    inside = [getattr(config, field.name) for field in fields(config)]
    return [config, *(part for group in inside if is_dataclass(group) for part in groups(group))]


def test_every_field_says_what_it_means():
    for part in groups(get_recipe("imagenet/resnet50")):
        texts = field_texts(type(part))
        assert list(texts) == [field.name for field in fields(part)]
        assert all(text.endswith(".") and len(text) > 10 for text in texts.values())


def test_fields_are_described_by_the_names_that_assignments_take():
    config = get_recipe("imagenet/resnet50")
    found = {one.field: one for one in described(config)}
    assert found["augment.shorter_side"].value == [256, 480]
    assert found["optim.momentum"].text == "Part of the last update that is kept (the paper, section 3.4: 0.9)."
    assert [path for path in found if "." not in path] == [
        field.name for field in fields(config) if not is_dataclass(getattr(config, field.name))
    ]


def test_equal_configs_have_equal_hashes_and_any_change_shows():
    config = get_recipe("imagenet/resnet50")
    assert config_hash(config) == config_hash(get_recipe("imagenet/resnet50"))
    for change in (
        {"seed": 1}, {"optim.lr": 0.05}, {"augment.shorter_side": [256, 288]}, {"steps": 10}, {"model.stride": "v1.5"},
    ):  # fmt: skip
        assert config_hash(with_overrides(config, change)) != config_hash(config), change


def test_overrides_reach_nested_fields_and_keep_types():
    config = with_overrides(
        get_recipe("imagenet/resnet50"),
        {"optim.lr": 1, "schedule.kind": "step", "schedule.boundaries": (3, 5), "batch": 64},
    )
    assert (config.optim.lr, config.schedule.boundaries, config.batch) == (1.0, (3, 5), 64)


def test_assignments_are_read_as_json_or_as_words_and_the_last_counts():
    texts = ["optim.lr=0.05", "schedule.kind = step", "schedule.boundaries=[3, 5]", "steps=1", "steps=2", "x=a=b"]
    assert parse_assignments(texts) == {
        "optim.lr": 0.05, "schedule.kind": "step", "schedule.boundaries": [3, 5], "steps": 2, "x": "a=b",
    }  # fmt: skip


def test_a_value_that_looks_like_json_stays_the_text_that_it_is():
    with pytest.raises(ConfigError, match=r"optim\.lr must be of type float, not '0\.05'"):
        with_overrides(get_recipe("imagenet/resnet50"), {"optim.lr": "0.05"})


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("optim.lr=-1", "optim.lr"),
        ("optim.lr=fast", "optim.lr"),
        ("optim.momentun=0.9", "momentum"),
        ("batch=100", "micro_batch"),
        ("steps=0", "steps"),
        ("steps", "key=value"),
        ("schedule.kind=linear", "schedule.kind"),
        ("schedule.boundaries=[5, 3]", "schedule.boundaries"),
        ("augment.shorter_side=[100, 200]", "augment.shorter_side"),
        ("augment.shorter_side=5", "augment.shorter_side"),
        ("views.resize=100", "views.resize"),
        ("model.shortcut=D", "model.shortcut"),
        ("seed=true", "seed"),
        ("recipe=../../x", "recipe is no name"),
        ('recipe="a\\u001b[31m"', "recipe is no name"),
        ("optim.lr=Infinity", "optim.lr"),
        ("optim.label_smoothing=1", "optim.label_smoothing"),
        ("optim.ema=1", "optim.ema"),
        ("precision=fp16", "precision"),
        ("steps=20000000", "steps"),
        ("schedule.warmup=600000", "schedule.warmup"),
        ("schedule.threshold=-0.1", "schedule.threshold"),
        ("schedule.warmup_until=0", "schedule.warmup_until"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_field(assignment, named):
    with pytest.raises(ConfigError) as error:
        with_overrides(get_recipe("imagenet/resnet50"), parse_assignments([assignment]))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("recipe", "assignments", "named"),
    [
        ("cifar10/resnet20", ["schedule.boundaries=[32000, 64000]"], "schedule.boundaries: 64000"),
        ("cifar10/resnet20", ["steps=100", "schedule.boundaries=[50, 200, 300]"], "schedule.boundaries: 200, 300"),
        ("cifar10/resnet110", ["schedule.warmup=5"], "schedule.warmup_lr"),
        ("cifar10/resnet20", ["schedule.boundaries=[0, 5]"], "schedule.boundaries"),
        ("imagenet-fast/resnet50", ["bn_images=0"], "bn_images"),
        ("cifar10/resnet20", ["growth.first=16"], "growth.first"),
    ],
)
def test_a_schedule_that_never_ends_is_refused_by_name(recipe, assignments, named):
    with pytest.raises(ConfigError, match=named.replace("[", r"\[")):
        with_overrides(get_recipe(recipe), parse_assignments(assignments))


def test_a_run_of_other_length_stretches_its_schedule():
    short = with_overrides(get_recipe("cifar10/resnet20"), {"steps": 640})
    assert short.schedule.boundaries == (320, 480)
    assert with_overrides(get_recipe("cifar10/resnet20"), {"steps": 2}).schedule.boundaries == (1,)
    assert with_overrides(get_recipe("cifar10/resnet20"), {"steps": 1}).schedule.boundaries == ()
    fast = get_recipe("imagenet-fast/resnet50")
    assert with_overrides(fast, {"steps": fast.steps // 10}).schedule.warmup == pytest.approx(626, abs=1)
    assert with_overrides(fast, {"steps": 1}).schedule.warmup == 0
    # a plateau's patience counts evaluations, whose interval stays
    plateau = get_recipe("imagenet/resnet50")
    assert [with_overrides(plateau, {"steps": n}).schedule.patience for n in (600_000, 1_200_000, 240_000, 2)] == [
        5, 10, 2, 1,
    ]  # fmt: skip
    assert with_overrides(plateau, {"steps": 60_000, "schedule.patience": 3}).schedule.patience == 3
    kept = with_overrides(get_recipe("cifar10/resnet20"), {"steps": 640, "schedule.boundaries": [5]})
    assert kept.schedule.boundaries == (5,)


def test_the_recipes_that_are_not_the_paper_s_are_apart():
    apart = [name for name in recipe_names() if name.split("/")[0] not in ("imagenet", "cifar10", "digits")]
    assert len(apart) == 58 and not set(apart) & set(PUBLISHED)
    fast = get_recipe("imagenet-fast/resnet50")
    assert fast.optim.lr == pytest.approx(0.1 * fast.batch / 256), "linear scaling"
    assert fast.steps * fast.batch == pytest.approx(90 * 1_281_167, rel=1e-4)
    for family in ("imagenet", "cifar10"):
        for name in (n for n in recipe_names() if n.startswith(f"{family}/")):
            config = get_recipe(name)
            assert (config.precision, config.compile, config.growth.first) == ("float32", False, 0), name
            assert (config.optim.ema, config.optim.label_smoothing, config.optim.decay_norm) == (
                0,
                0,
                family == "digits",
            ), name


def test_workers_that_cannot_share_the_batch_are_told_which_numbers_could():
    config = get_recipe("imagenet/resnet50")
    config.check_workers(8)
    with pytest.raises(ConfigError, match="1, 2, 4, 8 could"):
        config.check_workers(3)


def test_a_typo_in_a_recipe_suggests_the_nearest():
    with pytest.raises(UserError, match="imagenet/resnet152"):
        get_recipe("imagenet/resnet125")


def test_the_paper_s_errors_belong_to_recipes():
    assert set(PUBLISHED) <= set(recipe_names())


@pytest.mark.slow
def test_the_recipes_are_the_paper_s():
    imagenet, cifar = get_recipe("imagenet/resnet152"), get_recipe("cifar10/resnet110")
    assert (imagenet.batch, imagenet.micro_batch, imagenet.optim.lr, imagenet.steps) == (256, 32, 0.1, 600_000)
    assert (imagenet.augment.shorter_side, imagenet.augment.crop, imagenet.views.resize) == ((256, 480), 224, 256)
    assert imagenet.views.scales == (224, 256, 384, 480, 640)
    assert (cifar.batch, cifar.steps, cifar.schedule.boundaries) == (128, 64_000, (32_000, 48_000))
    assert (cifar.schedule.warmup_lr, cifar.schedule.warmup_until) == (0.01, 80.0)
    assert get_recipe("cifar10/resnet56").schedule.warmup_lr is None
    for recipe, option in (("resnet34", "A"), ("resnet34-b", "B"), ("resnet34-c", "C"), ("resnet50", "B")):
        model = get_recipe(f"imagenet/{recipe}").model
        assert model.shortcut == option
        build_model(model.name, shortcut=model.shortcut, num_classes=2)
