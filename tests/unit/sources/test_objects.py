"""Boxes and masks as COCO, Pascal VOC and ILSVRC publish them."""

from __future__ import annotations

import json

import pytest

from resnet_pipeline.errors import RefusedError
from resnet_pipeline.sources.layouts import read_catalogue
from resnet_pipeline.sources.objects import read_solution, read_voc
from resnet_pipeline.storage.local import LocalStorage
from tests.annotations import SQUARE, coco_files, voc_files, voc_xml
from tests.unit.sources.archives_made import kaggle_files, tar_of, write_ilsvrc


@pytest.fixture
def read(make_folder):
    """Return a function that makes a folder of files and returns its catalogue."""
    return lambda files, name="source": read_catalogue(LocalStorage(make_folder(files, name)))


def one(catalogue, name):
    (found,) = [each for file, each in catalogue.objects.items() if file.endswith(name)]
    return found


def test_coco_s_categories_boxes_and_masks(read):
    catalogue = read({**coco_files(), **coco_files([], split="val", count=1), "captions.json": b"{}"})
    assert (catalogue.layout, catalogue.classes, catalogue.category_ids) == ("COCO", ["car", "toothbrush"], [3, 90])
    assert [(e.split, e.key) for e in catalogue.entries] == [
        ("train", "train/000000000001.jpg"), ("train", "train/000000000002.jpg"), ("val", "val/000000000001.jpg")
    ]  # fmt: skip
    first, without = one(catalogue, "train2017/000000000001.jpg"), one(catalogue, "train2017/000000000002.jpg")
    assert first.number == 1 and without.objects == () and not catalogue.labelled
    car, crowd = first.objects
    assert (car.box, car.label, car.number, car.area, car.crowd) == ((4, 4, 14, 14), "car", 7, 90.5, False)
    assert json.loads(car.mask) == SQUARE and crowd.crowd and json.loads(crowd.mask)["size"] == [48, 64]
    assert {item.reason for item in catalogue.ignored if "instances" in item.file} == {"read for its objects"}


def test_an_image_of_coco_is_found_in_its_set_s_folder_or_by_its_only_name(read):
    files = {name.replace("train2017/", "images/all/"): data for name, data in coco_files().items()}
    assert len(read(files).entries) == 2
    both = files | {name.replace("all", "train2017"): data for name, data in files.items() if name.startswith("images")}
    assert [entry.member.name for entry in read(both).entries] == [
        f"images/train2017/00000000000{i}.jpg" for i in (1, 2)
    ]


BAD = {"id": 9, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (coco_files([{**BAD, "image_id": 5}]), "annotation 9 names image 5, which it does not have"),
        (coco_files([{**BAD, "category_id": 5}]), "annotation 9 names category 5, which it does not have"),
        (coco_files([{**BAD, "bbox": [1, 2, 3]}]), "an annotation can't be read"),
        (coco_files(["x"]), "an annotation can't be read"),
        (coco_files(categories=None), "is no file of COCO's instances"),
        (coco_files(categories=[{"id": 3, "name": "a"}, {"id": 4, "name": "a"}]), "two categories of one name"),
        (coco_files(images=[{"id": 1, "file_name": "elsewhere.jpg"}]), "image elsewhere.jpg is not in"),
        ({"annotations/instances_val2017.json": b"{", "val2017/1.jpg": b"x"}, "is no file of COCO's instances"),
        ({**coco_files(), **{f"a/{k}": v for k, v in coco_files().items()}}, "several sets of a split"),
        (
            {**coco_files(), **coco_files([], split="val", categories=[{"id": 3, "name": "bus"}])},
            "category 3 is 'bus', and 'car' in another set",
        ),
    ],
)
def test_a_coco_file_that_contradicts_itself_is_refused_in_a_line(read, files, words):
    with pytest.raises(RefusedError, match=words) as caught:
        read(files)
    assert "\n" not in str(caught.value) and "instances_" in str(caught.value)


def test_voc_counts_pixels_from_one_and_both_ends(read):
    catalogue = read(voc_files({"train": ["a", "b"], "val": ["c"]}, boxes="1 1 64 48"))
    assert (catalogue.layout, catalogue.classes) == ("Pascal VOC", ["dog"])
    assert sorted(e.key for e in catalogue.entries) == ["train/a.jpg", "train/b.jpg", "val/c.jpg"]
    assert one(catalogue, "a.jpg").objects[0].box == (0, 0, 64, 48)
    assert one(catalogue, "a.jpg").width == 64


def test_with_a_test_list_voc_is_trained_on_trainval_and_tested_on_test(read):
    files = voc_files({"train": ["a"], "val": ["b"], "trainval": ["a", "b"], "test": ["c"]})
    assert sorted(e.key for e in read(files).entries) == ["train/a.jpg", "train/b.jpg", "val/c.jpg"]
    del files["VOC2007/Annotations/c.xml"]  # as VOC 2012's
    assert sorted(e.key for e in read(files, "2012").entries) == ["train/a.jpg", "val/b.jpg"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"VOC2007/Annotations/a.xml": b"<annotation"}, "a.xml is no annotation in XML"),
        ({"VOC2007/Annotations/a.xml": voc_xml("a.jpg", "1 x 3 4")}, r"a.xml: bndbox of object 1 \(dog\) is not four"),
        ({"VOC2007/Annotations/a.xml": voc_xml("a.jpg", "1 2 3 4", name="")}, "a.xml: object 1 has no name"),
        ({"VOC2007/ImageSets/Main/train.txt": b"a\nnone"}, "none of ImageSets/Main has no image"),
        (
            {"VOC2012/JPEGImages/a.jpg": b"", "VOC2012/Annotations/a.xml": b""},
            "several datasets, VOC2007/ and VOC2012/",
        ),
    ],
)
def test_a_voc_folder_that_lacks_something_is_refused_in_a_line(read, change, words):
    with pytest.raises(RefusedError, match=words) as caught:
        read(voc_files({"train": ["a"]}) | change)
    assert "\n" not in str(caught.value)


def test_a_box_without_area_is_one_of_no_pixel():
    assert read_voc(voc_xml("a", "5 5 5 9"), "a").objects[0].box == (4, 4, 4, 9)
    assert read_voc(voc_xml("a", "9 5 4 9", difficult=1), "a").objects[0].difficult


def test_ilsvrc_counts_pixels_from_nought():
    assert read_voc(voc_xml("a", "0 0 63 47"), "a", first=0).objects[0].box == (0, 0, 64, 48)
    rows = read_solution("ImageId,PredictionString\nv1,n1 0 0 63 47 n2 1 2 3 4 \nv2,n3\n", "t")
    assert [(o.label, o.box) for o in rows["v1"]] == [("n1", (0, 0, 64, 48)), ("n2", (1, 2, 4, 5))]
    assert "v2" not in rows
    for row in ("v,n1 0 0 63", "v,n1 0 0 63 x", "v,n1 0 0 6 4 n2"):
        with pytest.raises(RefusedError, match="t: the row of v is not classes with four numbers each"):
            read_solution(row, "t")


TRAINING = {"n01": {"n01_1.JPEG": b"a", "n01_2.JPEG": b"b"}, "n02": {"n02_1.JPEG": b"c"}}
VALIDATION = [("n02", b"d"), ("n01", b"e")]
WORDS = {"n01": "tench", "n02": "goldfish"}


def test_kaggle_s_tables_have_boxes(read):
    files = kaggle_files(TRAINING, VALIDATION, WORDS)
    files["LOC_train_solution.csv"] = b"ImageId,PredictionString\nn01_2,n01 0 0 9 19 \n"
    catalogue = read(files)
    assert catalogue.labelled and catalogue.classes == ["n01", "n02"]
    assert {file.rpartition("/")[2]: [o.box for o in each.objects] for file, each in catalogue.objects.items()} == {
        "ILSVRC2012_val_00000001.JPEG": [(85, 1, 500, 273), (3, 4, 6, 7)],
        "ILSVRC2012_val_00000002.JPEG": [(85, 1, 500, 273), (3, 4, 6, 7)],
        "n01_2.JPEG": [(0, 0, 10, 20)],
    }


def test_archives_of_boxes_may_lie_beside_ilsvrc_s(tmp_path):
    folder = write_ilsvrc(tmp_path / "archives", TRAINING, VALIDATION, WORDS)
    plain = read_catalogue(LocalStorage(folder), check_md5=False)
    assert plain.objects is None
    xml = voc_xml("ILSVRC2012_val_00000001", "0 0 9 9", name="n02")
    boxes = {"val/ILSVRC2012_val_00000001.xml": xml, "val/ILSVRC2012_val_00000009.xml": b"of no image"}
    tar_of(folder / "ILSVRC2012_bbox_val_v3.tgz", boxes, "w:gz")
    boxed = read_catalogue(LocalStorage(folder), check_md5=False)
    assert {file: [o.box for o in each.objects] for file, each in boxed.objects.items()} == {
        "ILSVRC2012_val_00000001.JPEG": [(0, 0, 10, 10)]
    }
    assert boxed.entries == plain.entries
