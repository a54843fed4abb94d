"""The words of the commands that repeat a run; tests/unit/jobs/test_registry.py runs them."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.manifest import SOURCE, Origin, Remark
from resnet_pipeline.jobs.register import Registration
from resnet_pipeline.jobs.repeat import commands, told_apart
from resnet_pipeline.jobs.stage import digits_folder
from resnet_pipeline.jobs.train import run_config
from resnet_pipeline.recipes import changes_of, get_recipe
from resnet_pipeline.staging.stage import Options, stage
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.metrics_log import MetricsLog, ResumeEntry
from resnet_pipeline.training.result import RunResult
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace
from tests.images import jpeg

CHANGES = [
    {},
    {"steps": 640, "seed": 3},
    {"steps": 5, "schedule.patience": 5, "schedule.most_drops": None, "optim.decay_norm": True},
    {"schedule.kind": "step", "schedule.boundaries": [2], "augment.shorter_side": [300, 400], "model.shortcut": "C"},
]


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("recipe", ["imagenet/resnet50", "cifar10/resnet110", "imagenet-fast/resnet18"])
def test_changes_make_the_config_again(recipe, changes):
    config = with_overrides(get_recipe(recipe), changes)
    found = changes_of(config)
    assert with_overrides(get_recipe(recipe), found) == config and set(found) <= set(changes)
    assert changes_of(get_recipe(recipe)) == {}


def test_runs_of_one_recipe_have_names_of_their_own():
    configs = [run_config("digits/resnet8", {"optim.lr": lr}, seed=seed) for lr, seed in ((0.1, 0), (0.1, 1), (0.2, 0))]
    names = told_apart([*configs[:2], get_recipe("digits/resnet14"), configs[2]])
    assert names == [
        "digits/resnet8 seed=0 optim.lr=0.1", "digits/resnet8 seed=1 optim.lr=0.1", "digits/resnet14",
        "digits/resnet8 seed=0 optim.lr=0.2",
    ]  # fmt: skip


@pytest.fixture
def finished(digits, tmp_path):
    """Return a function that makes a run's directory as it is at the end."""

    def make(workers: int, resumed: tuple[int, ...] = (), version: str | None = None, **changes) -> RunDirectory:
        run = RunDirectory.create(tmp_path / "runs", run_config("digits/resnet8", changes), digits.facts)
        log = MetricsLog(run.metrics_file)
        for count in resumed:
            log.append(1, ResumeEntry(workers=count))
        log.close()
        RunResult(
            steps=240, images=1, seconds=1.0, images_per_second=1.0, workers=workers, device="cpu", train_loss=None,
            train_error=None, validation={}, best={}, weights_sha256="",
        ).write(run.result_file)  # fmt: skip
        if version:
            Registration(version=version, uri="models:/digits-resnet8/1").keep(run)
        return run

    return make


def test_a_training_is_repeated_with_its_workers_and_under_its_name(digits, finished, tmp_path):
    runs = [
        finished(2, version="digits-resnet8 version 3 @candidate"),
        finished(1, (2, 1), version="mine version 1", seed=4),
        finished(1, **{"model.name": "it's"}),
    ]
    (_, *found) = commands(Workspace(tmp_path), digits, runs, ["a", "b", "c"], ["center", "10-crop"])
    train, names = "resnet-pipeline train digits/resnet8 --dataset digits", " ".join(run.name for run in runs)
    assert found == [
        ("Train a", f"{train} --workers 2"),
        (
            "Train b (its workers were 2, then 1: the last bits may differ)",
            f"{train} --seed 4 --workers 1 --register mine",
        ),
        (
            "Train c",
            f"{train} --set {shlex.quote(chr(109) + 'odel.name=it' + chr(39) + 's')} --workers 1 --no-register",
        ),
        ("Average them, center", f"resnet-pipeline ensemble {names} --dataset digits --protocol center"),
        ("Average them, 10-crop", f"resnet-pipeline ensemble {names} --dataset digits --protocol 10-crop"),
        (
            "Test them, and write this page",
            f"resnet-pipeline report {names} --dataset digits --protocol center --protocol 10-crop",
        ),
    ]


def test_staging_is_repeated_with_its_options(tmp_path):
    source = tmp_path / "my images"
    for number in range(8):
        path = source / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(40, 30 + number))
    options = Options(holdout=2, max_shorter_side=24, max_value=4095, check_md5=False)
    space = Workspace(tmp_path)
    dataset = stage(source, tmp_path / "mine", name="mine", workers=1, options=options)
    dataset.manifest = dataclasses.replace(dataset.manifest, refused=(Remark("x", "broken"),))
    (staged, *_) = commands(space, dataset, [], [], [])
    assert staged[1] == (
        f"resnet-pipeline stage --source {shlex.quote(str(source))} --name mine --holdout 2 --max-shorter-side 24 "
        "--max-value 4095 --no-md5 --max-refused 0.12"
    )
    # datasets of before do not say; the built-in digits have a name
    LocalStorage(dataset.path).write(SOURCE, Origin(path=str(digits_folder(space)), fingerprint="").to_bytes())
    assert "--source builtin:digits --name mine --max-shorter-side" in commands(space, dataset, [], [], [])[0][1]
