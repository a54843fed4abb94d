"""What staging makes of annotated objects: the same for any number of workers, with an account of what was left out."""

from __future__ import annotations

import numpy as np
import pytest

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.errors import RefusedError, UserError
from resnet_pipeline.staging.stage import Options, Source, pack
from resnet_pipeline.storage.local import LocalStorage
from tests.annotations import SQUARE, coco_files, voc_files
from tests.packing import InThisProcess


@pytest.fixture
def staged(make_folder, tmp_path):
    """Return a function that stages a folder of files as a dataset."""

    def staged(files, **options):
        source = Source.at(make_folder(files))
        pack(source, LocalStorage(tmp_path / "d"), name="d", workers=InThisProcess, options=Options(**options))
        return Dataset.open(tmp_path / "d")

    return staged


def annotation(number, box, **more):
    return {"id": number, "image_id": 1, "category_id": 3, "bbox": box, **more}


def test_objects_lie_beside_their_images(staged):
    dataset = staged({**coco_files(count=3), **coco_files([], split="val")}, shard_bytes=4000)
    train, val = dataset.splits["train"], dataset.splits["val"]
    assert len(train.shards) > 1, "dealt out, and in another order than the source's"
    by_key = {key: train.objects.of(i) for i, key in enumerate(train.keys)}
    assert {key: (found.image, len(found)) for key, found in by_key.items()} == {
        f"train/00000000000{i}.jpg": (i, 2 * (i == 1)) for i in (1, 2, 3)
    }
    found = by_key["train/000000000001.jpg"]
    assert found.box.tolist() == [[4, 4, 14, 14], [0, 0, 64, 48]] and found.label.tolist() == [0, 1]
    assert found.crowd.tolist() == [False, True] and found.area.tolist() == [90.5, 3072]
    assert found.segmentation(0) == SQUARE and found.number.tolist() == [7, 8]
    assert val.objects.count == 0 and len(val.objects) == 2 and (train.labels == -1).all()
    facts = dataset.manifest.objects
    assert (facts.objects, facts.masks, facts.categories, facts.left_out) == (2, 2, (3, 90), ())
    # a part of the images keeps its own
    one = train.part(np.array([train.keys.index("train/000000000001.jpg")]))
    assert one.objects.of(0).number.tolist() == [7, 8] and one.objects.per_class(2).tolist() == [1, 1]
    assert len(dataset.trained_on(0.67).splits["train"]) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (annotation(2, [5, 5, 0, 9]), "object 2 (car) has no area: left out"),
        (annotation(2, [70, 5, 9, 9]), "object 2 (car) lies outside of the image of 64×48 pixels: left out"),
        (annotation(2, [float("nan"), 5, 9, 9]), "object 2 (car) has a coordinate that is no number: left out"),
        (annotation(1, [5, 5, 9, 9]), "object 1 (car) has the number of another: left out"),
    ],
)
def test_an_object_that_is_none_is_left_out_with_a_remark(staged, caplog, bad, reason):
    with caplog.at_level("INFO"):
        dataset = staged(coco_files([annotation(1, [1, 1, 5, 5]), bad]))
    assert dataset.splits["train"].objects.count == 1
    assert [(r.file, r.reason) for r in dataset.manifest.objects.left_out] == [("train/000000000001.jpg", reason)]
    assert reason in caplog.text and "1 objects" in caplog.text


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1, 2, 3, 4]], "has a polygon that is not three points or more"),
        ([[1, 2, 3, 4, 5, 6, 7]], "has a polygon"),
        ({"size": [64, 48], "counts": [3072]}, "has 48×64 pixels, the image 64×48"),
        ({"size": [48, 64], "counts": [3071]}, "has run lengths that don't fill the image"),
        ({"size": 4}, "is neither polygons nor run lengths"),
    ],
)
def test_of_a_broken_mask_the_box_is_kept(staged, mask, words):
    dataset = staged(coco_files([annotation(1, [1, 1, 5, 5], segmentation=mask)]))
    found = dataset.splits["train"].objects.of(0)
    assert len(found) == 1 and found.segmentation(0) is None
    (remark,) = dataset.manifest.objects.left_out
    assert words in remark.reason and remark.reason.endswith("left out, its box is kept")


def test_a_box_that_sticks_out_is_clipped_and_counted(staged):
    dataset = staged(coco_files([annotation(1, [-5, -5, 20, 20]), annotation(2, [50, 40, 14.4, 8.2])]))
    assert dataset.splits["train"].objects.of(0).box.tolist() == [[0, 0, 15, 15], [50, 40, 64, 48]]
    assert dataset.manifest.objects.clipped == 1, "a fraction of a pixel is rounding"


def test_an_annotation_of_another_image_is_refused(staged, tmp_path):
    files = coco_files([], images=[{"id": 1, "file_name": "000000000001.jpg", "width": 640, "height": 480}])
    with pytest.raises(RefusedError, match=r"000000000001.jpg has 64×48 pixels, its annotation says 640×480"):
        staged(files)
    assert not (tmp_path / "d").exists()


def test_boxes_don_t_fit_images_that_are_made_smaller(staged):
    with pytest.raises(UserError, match=r"--max-shorter-side 32: .* has boxes"):
        staged(voc_files({"train": ["a"]}), max_shorter_side=32)


def test_a_dataset_of_objects_has_one_fingerprint_and_another_box_another(make_folder, tmp_path):
    found = []
    for number, box in enumerate((5, 5, 6)):
        files = coco_files([annotation(1, [1, 1, box, 5])])
        storage = LocalStorage(tmp_path / f"d{number}")
        pack(Source.at(make_folder(files)), storage, name="d", workers=InThisProcess)
        found.append(Dataset.open(storage.root).fingerprint)
    assert found[0] == found[1] != found[2]


def test_bccd_as_published(bccd, tmp_path):
    pack(Source.at(bccd), LocalStorage(tmp_path / "d"), name="d", workers=1)
    dataset = Dataset.open(tmp_path / "d")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 292, "val": 72}
    assert dataset.classes == ["Platelets", "RBC", "WBC"]
    assert dataset.manifest.objects.objects == 4886 and len(dataset.manifest.objects.left_out) == 2
