"""Detectors and localisers tested on Ray, alone and together: they find what one process finds."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import pytest
import torch

from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.detection import task_of
from resnet_pipeline.jobs import search
from resnet_pipeline.jobs.detect import DetectionTest, evaluate_detectors, evaluate_detectors_together
from resnet_pipeline.jobs.localise import localise
from resnet_pipeline.models.weights import save_weights, weights_sha256
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.sources.scenes import write_scenes
from resnet_pipeline.staging.stage import Source, pack
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace
from tests.packing import InThisProcess
from tests.unit.detection.conftest import located  # noqa: F401 - a fixture
from tests.unit.detection.test_localisation import config
from tests.unit.detection.test_regions import region_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]


def test_two_workers_find_what_one_process_finds(tmp_path, monkeypatch):
    space = Workspace.of(tmp_path / "work")
    write_scenes(space.root / "source", {"train": 4, "val": 12})
    pack(Source.at(space.root / "source"), LocalStorage(space.root / "datasets/s"), name="s", workers=InThisProcess)
    dataset = open_dataset(space, "s")
    changed = {"optim.frozen_stages": None, "detection.least_score": 0.0, "detection.norm": "batch"}
    config = with_overrides(get_recipe("scenes/fasterrcnn-resnet8-c4"), changed)
    names = []
    for seed in (0, 1):
        config = with_overrides(config, {"seed": seed})
        run = RunDirectory.create(space.runs, config, dataset.facts)
        save_weights(task_of(config, dataset, LocalContext()).network(), run.weights_file, {})
        names.append(run.name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(search, "PART_IMAGES", 4)
    test = DetectionTest(dataset="s", images=10, samples=10)
    here = [*evaluate_detectors(space, names[:1], test), evaluate_detectors_together(space, names, test)]
    contents = [each.path.read_bytes() for each in here]
    for each in here:
        each.path.unlink()
    test = dataclasses.replace(test, workers=2)
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        there = [*evaluate_detectors(space, names[:1], test), evaluate_detectors_together(space, names, test)]
    torch.set_num_threads(threads)
    for one, other, content in zip(here, there, contents, strict=True):
        assert not other.reused and other.images == 10 and len(content) > 1000
        assert other.path == one.path and other.path.read_bytes() == content
        assert not one.path.with_suffix(".parts").exists()


def test_two_workers_give_the_boxes_that_one_process_gives(located, tmp_path, monkeypatch):  # noqa: F811
    """Those of a localiser, and of an R-CNN on its boxes."""
    space = Workspace.of(tmp_path / "work")
    Path(space.data).mkdir(parents=True)
    (Path(space.data) / "d").symlink_to(located.path)
    dataset = open_dataset(space, "d")

    def untrained(changed):
        run = RunDirectory.create(space.runs, changed, dataset.facts)
        network = task_of(changed, dataset, LocalContext()).network()
        save_weights(network, run.weights_file, {})
        return run, weights_sha256(network)

    first, digest = untrained(config(recipe="ilsvrc-loc/resnet101"))
    second, _ = untrained(region_config(regions={"localiser": digest}))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(search, "PART_IMAGES", 4)
    tests = [{}, {"rcnns": [second.name]}]
    here = [localise(space, first.name, "d", **options) for options in tests]
    contents = [Path(each.results).read_bytes() for each in here]
    for each in here:
        Path(each.results).unlink()
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        there = [localise(space, first.name, "d", workers=2, **options) for options in tests]
    torch.set_num_threads(threads)
    assert there == here and contents[0] != contents[1]
    assert [Path(each.results).read_bytes() for each in there] == contents
