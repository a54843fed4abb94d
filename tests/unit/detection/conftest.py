"""A small set of images with bright rectangles of two kinds, staged, and a small detector's config."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_pipeline.config import (
    AugmentConfig,
    DetectionConfig,
    LocalisationConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    ViewConfig,
)
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.detection import task_of
from resnet_pipeline.staging.stage import Source, pack
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace
from tests.conftest import archive
from tests.packing import InThisProcess

REAL = {
    "model": ModelConfig(name="resnet18", mean="channel"),
    "views": ViewConfig(crop=64, resize=64, scales=(64,)),
    "optim": OptimConfig(lr=0.02, momentum=0.9, decay_norm=False),
    "schedule": ScheduleConfig(kind="cosine", warmup=20),
    "micro_batch": 16,
    "bn_images": 400,
}
"""What networks that learn 400 real images by heart have in common."""


COLORS = ((230, 60, 60), (60, 60, 230))


def scene(seed: int, number: int) -> tuple[bytes, list[dict]]:
    """Return a grey image of 72×56 pixels, as PNG, with one to three rectangles apart, and its annotations."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 110, (56, 72, 3)).astype(np.uint8)
    annotations = []
    for slot in rng.permutation(3)[: rng.integers(1, 4)]:
        width, height = rng.integers(14, 22, 2)
        left, top = 2 + 24 * int(slot) + int(rng.integers(0, 2)), int(rng.integers(0, 56 - height))
        kind = int(rng.integers(0, 2))
        pixels[top : top + height, left : left + width] = COLORS[kind]
        x0, y0, x1, y1 = left, top, left + int(width), top + int(height)
        annotations.append({
            "id": 10 * number + len(annotations), "image_id": number, "category_id": kind + 1, "iscrowd": 0,
            "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
            "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
        })  # fmt: skip
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue(), annotations


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return 12 training and 6 validation scenes, staged."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, numbers in (("train", range(1, 13)), ("val", range(101, 107))):
        images, annotations = [], []
        for number in numbers:
            data, own = scene(number, number)
            file = folder / "source" / f"{split}2017" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
            images.append({"id": number, "file_name": file.name, "width": 72, "height": 56})
            annotations += own
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        }
        place = folder / "source/annotations" / f"instances_{split}2017.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps(content))
    pack(Source.at(folder / "source"), LocalStorage(folder / "d"), name="scenes", workers=InThisProcess)
    return Dataset.open(folder / "d")


def small_config(steps: int = 4, **detection: object) -> RunConfig:
    """Return a detector of a second a step, for scenes."""
    options = {"norm": "batch", "anchor_sizes": (12, 18, 24), "longest": 100, "pooled": 8, "sampled_anchors": 64,
               "sampled_regions": 32, "proposals": 40}  # fmt: skip
    return RunConfig(
        recipe="scenes/fasterrcnn-resnet8-c4",
        model=ModelConfig(name="cifar-resnet8", mean="channel"),
        augment=AugmentConfig(kind="whole-image", crop=56, shorter_side=(52, 60)),
        views=ViewConfig(crop=56, resize=56, scales=(56,)),
        optim=OptimConfig(lr=0.02, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="cosine", warmup=min(10, steps // 2)),
        detection=DetectionConfig(**(options | detection)),
        batch=4,
        micro_batch=2,
        steps=steps,
        eval_every=max(2, steps),
        checkpoint_every=max(1, steps // 2),
        log_every=max(1, steps // 4),
        bn_images=0,
    )


def kaggle(folder: Path, images: list[tuple[str, str, str, bytes, str]]) -> Path:
    """Write Kaggle's layout: split, class, name, file and the solution's text of each image."""
    for split in ("train", "val"):
        rows = [(name, text) for which, _, name, _, text in images if which == split]
        with (folder / f"LOC_{split}_solution.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("ImageId", "PredictionString"), *rows])
    for split, wnid, name, content, _ in images:
        place = folder / "ILSVRC/Data/CLS-LOC" / split / (wnid if split == "train" else "") / f"{name}.JPEG"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return folder


def picture(number: int) -> tuple[str, bytes, str]:
    """Return the class, the file and the solution's text of an image of 48×40 pixels with a bright rectangle."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(90, 110, (40, 48, 3)).astype(np.uint8)
    width, height = rng.integers(14, 22, 2)
    left, top = rng.integers(2, 46 - width), rng.integers(2, 38 - height)
    kind = number % 2
    pixels[top : top + height, left : left + width] = COLORS[kind]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    wnid = f"n0000000{kind}"
    return wnid, buffer.getvalue(), f"{wnid} {left} {top} {left + width} {top + height} "


@pytest.fixture(scope="session")
def located(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return 16 training and 8 validation images of two classes with a box each; one training image has none."""
    folder = tmp_path_factory.mktemp("located")
    images = []
    for split, numbers in (("train", range(16)), ("val", range(100, 108))):
        for number in numbers:
            wnid, content, text = picture(number)
            name = f"{wnid}_{number}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
            images.append((split, wnid, name, content, text))
    images.append(("train", "n00000000", "n00000000_99", picture(98)[1], ""))
    (folder / "source").mkdir()
    pack(Source.at(kaggle(folder / "source", images)), LocalStorage(folder / "d"), name="d", workers=InThisProcess)
    return Dataset.open(folder / "d")


@pytest.fixture(scope="session")
def by_heart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, RunDirectory]:
    """Return a localiser trained on the central squares of ILSVRC's first 400 validation images, as docs/RESULTS.md."""
    space = Workspace(tmp_path_factory.mktemp("real"))
    with tarfile.open(archive("RESNET_PIPELINE_ILSVRC_VAL")) as tar:
        members = {Path(member.name).name: member for member in tar if member.isfile()}
        text = tar.extractfile(members["LOC_val_solution.csv"]).read().decode()
        named = [(name, boxes) for name, boxes in csv.reader(io.StringIO(text)) if f"{name}.JPEG" in members]
        images = [
            (split, boxes.split()[0], name, tar.extractfile(members[f"{name}.JPEG"]).read(), boxes)
            for split in ("train", "val")
            for name, boxes in named
        ]
    source, place = space.root / "source", Path(space.data) / "d"
    source.mkdir(parents=True)
    pack(Source.at(kaggle(source, images)), LocalStorage(place), name="d", workers=InThisProcess)
    dataset = Dataset.open(place)
    changed = RunConfig(
        steps=900,
        recipe="ilsvrc-loc/resnet101",
        localisation=LocalisationConfig(norm="batch", anchor_sizes=(44,), anchor_ratios=(1.0,)),
        augment=AugmentConfig(kind="random-resized-crop", crop=64, area=(1.0, 1.0), aspect=(1.0, 1.0), flip=False),
        precision="auto",
        batch=16,
        eval_every=900,
        checkpoint_every=450,
        log_every=225,
        **REAL,
    )
    run = RunDirectory.create(space.runs, changed, dataset.facts)
    assert train(run, dataset, LocalContext(), task=task_of(changed, dataset, LocalContext()))
    return space, run


@pytest.fixture
def make_detection_run(tmp_path: Path, scenes: Dataset) -> Callable:
    """Return a function that makes a run directory of a small detector; ``folder`` tells equal runs apart."""

    def make(folder: str = "runs", **options: object) -> RunDirectory:
        return RunDirectory.create(tmp_path / folder, small_config(**options), scenes.facts)

    return make


@pytest.fixture(scope="session")
def coco(request, tmp_path_factory) -> Dataset:
    """Return COCO128, staged."""
    place = LocalStorage(tmp_path_factory.mktemp("coco128") / "d")
    pack(Source.at(request.getfixturevalue("coco128")), place, name="coco128", workers=InThisProcess)
    return Dataset.open(place.root)
