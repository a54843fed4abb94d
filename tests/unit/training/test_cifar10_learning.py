"""CIFAR-10 from its archive, and ResNet-20 on it with the paper's augmentation."""

from __future__ import annotations

import pytest

from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.staging.stage import stage
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import TrainEntry
from resnet_pipeline.training.run_directory import RunDirectory
from tests.metrics import entries

pytestmark = pytest.mark.soak  # two minutes of a core


def test_resnet20_learns_cifar10_from_the_archive(cifar10_archive, tmp_path):
    dataset = stage(cifar10_archive, tmp_path / "cifar10", name="cifar10", workers=2)
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 50_000, "test": 10_000}
    assert dataset.classes == ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert dataset.statistics.mean_image.shape == (32, 32, 3)
    # the training images' mean colour, 0..255, as published with many implementations
    assert dataset.statistics.mean_rgb == pytest.approx([125.3, 123.0, 113.9], abs=0.5)
    config = with_overrides(
        get_recipe("cifar10/resnet20"),
        {"steps": 150, "log_every": 25, "eval_every": 1000, "bn_images": 2560, "checkpoint_every": 1000},
    )
    assert (config.augment.kind, config.augment.pad, config.augment.crop) == ("pad-crop", 4, 32)
    run = RunDirectory.create(tmp_path / "runs", config, dataset.facts)
    train(run, dataset, LocalContext())
    errors = [entry.figures["error"] for _, entry in entries(run, TrainEntry)]
    assert errors[-1] < errors[0] - 15
    validation = run.result().validation
    assert validation["top1"] < 70 and validation["images"] == 10_000
