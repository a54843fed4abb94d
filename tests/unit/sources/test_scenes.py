"""The built-in scenes: the same whoever writes them, boxes and masks that fit one another, digits apart by split."""

from __future__ import annotations

import json

import numpy as np
import pytest
from faster_coco_eval.core import mask as coco_mask

from resnet_pipeline.sources.scenes import HEIGHT, WIDTH, write_scenes

COUNTS = {"train": 6, "val": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(place, COUNTS)
    return place


def test_they_are_the_same_each_time_they_are_written(folder, tmp_path):
    write_scenes(tmp_path / "again", COUNTS)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        again = tmp_path / "again" / file.relative_to(folder)
        assert again.read_bytes() == file.read_bytes()
        assert again.stat().st_mtime == file.stat().st_mtime
    write_scenes(tmp_path / "other", COUNTS, seed=1)
    first = "train/000001.jpg"
    assert (tmp_path / "other" / first).read_bytes() != (folder / first).read_bytes()


@pytest.mark.parametrize(("split", "count"), COUNTS.items())
def test_each_box_is_its_mask_s_and_no_two_digits_overlap(folder, split, count):
    content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
    assert len(content["images"]) == count == len(list((folder / split).glob("*.jpg")))
    covered = {image["id"]: np.zeros((HEIGHT, WIDTH), int) for image in content["images"]}
    for each in content["annotations"]:
        mask = coco_mask.decode(coco_mask.frPyObjects(each["segmentation"], HEIGHT, WIDTH))
        left, top, width, height = each["bbox"]
        rows, columns = np.nonzero(mask)
        assert (columns.min(), rows.min()) == (left, top)
        assert (columns.max() + 1, rows.max() + 1) == (left + width, top + height)
        assert mask.sum() == each["area"] > 20
        covered[each["image_id"]] += mask
    assert all(1 <= cover.max() == 1 for cover in covered.values())


def test_validation_shows_digits_that_training_does_not():
    from resnet_pipeline.sources.scenes import _digits

    digits = _digits()
    assert (len(digits["train"]), len(digits["val"])) == (1_433, 364)  # as the digits' own dataset is split
