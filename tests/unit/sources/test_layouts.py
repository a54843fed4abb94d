"""The layouts that people have, and the account of what is in them."""

from __future__ import annotations

import logging
import os
import unicodedata

import pytest

from resnet_pipeline.errors import RefusedError, UserError
from resnet_pipeline.sources.catalogue import Ignored, ignored_of, with_holdout
from resnet_pipeline.sources.layouts import read_catalogue, source_files
from resnet_pipeline.staging.area import catalogue_of, listing_of
from resnet_pipeline.storage.local import LocalStorage
from tests.unit.sources.archives_made import kaggle_files, meta_mat, tar_of, write_ilsvrc

TRAIN = [f"train/{label}/{i}.JPEG" for label in "ab" for i in range(2)]
PLAIN = [*TRAIN, "val/a/0.JPEG", "val/b/0.JPEG"]


@pytest.fixture
def read(make_folder):
    """Return a function that makes a folder of files and returns its catalogue; contents are the names or as given."""

    def read(*names, **contents):
        files = {name: name.encode() for name in names}
        return read_catalogue(LocalStorage(make_folder(files | contents.get("files", {}))))

    return read


def keys(catalogue):
    return sorted(entry.key for entry in catalogue.entries)


def ignored(catalogue):
    return {item.file: item.reason for item in catalogue.ignored}


def found(catalogue):
    return len(catalogue.entries) + sum(item.files for item in (*catalogue.hidden, *catalogue.ignored))


def labels(catalogue, split):
    return {entry.member.name.rpartition("/")[2]: entry.label for entry in catalogue.entries if entry.split == split}


def test_every_file_of_a_source_is_in_the_account(tmp_path, make_folder):
    odd = [
        "Thumbs.db",
        "train/a/desktop.ini",
        "train/.cache/x",
        "README.md",
        "train/a/labels.csv",
        "notes",
        "val/9.JPEG",
    ]
    folder = make_folder(dict.fromkeys([*PLAIN, *odd, "other/x.JPEG"], b"x"))
    (folder / "train/a/broken.JPEG").symlink_to("nowhere")
    os.mkfifo(folder / "train/a/pipe")
    catalogue = read_catalogue(LocalStorage(folder))
    assert keys(catalogue) == sorted(PLAIN) and len(catalogue.hidden) == 3
    assert found(catalogue) == sum(len(files) for _, _, files in os.walk(folder))
    assert ignored(catalogue) == {
        "README.md": "no image, by its name",
        "train/a/labels.csv": "no image, by its name",
        "notes": "lies in no split's folder",
        "other/x.JPEG": "lies in no split's folder",
        "val/9.JPEG": "lies in val without a class, and no table names one",
        "train/a/broken.JPEG": "a broken link",
        "train/a/pipe": "no regular file",
    }


def test_the_account_is_kept_with_the_listing(read):
    catalogue = read(*PLAIN, "Thumbs.db", "README.md", "train/a/deep/er/x.JPEG")
    again = catalogue_of(listing_of(catalogue), catalogue.storage)
    assert (again.entries, again.ignored) == (catalogue.entries, catalogue.ignored)
    assert again.hidden == catalogue.hidden and len(again.hidden) == 1


def test_very_many_ignored_files_are_named_by_folder():
    files = [Ignored(f"Annotations/{i % 3}/{i}.xml", "no image") for i in range(300)]
    assert len(ignored_of(files)) == 300
    assert ignored_of(files, most=299) == [Ignored(f"Annotations/{i}/", "no image", 100) for i in range(3)]


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("Val", "val"),
        ("eval", "val"),
        ("Validation", "val"),
        ("testing", "test"),
        ("TEST", "test"),
        ("evaluation", "val"),
    ],
)
def test_other_names_of_splits(read, folder, split):
    assert keys(read(*TRAIN, f"{folder}/a/7.JPEG")) == sorted([*TRAIN, f"{split}/a/7.JPEG"])


def test_a_second_folder_for_a_split_is_named_not_mixed_in(read):
    catalogue = read(*PLAIN, "eval/a/7.JPEG")
    assert keys(catalogue) == sorted(PLAIN)
    assert ignored(catalogue) == {"eval/a/7.JPEG": "val is there beside eval"}


def test_a_split_that_stands_twice_is_no_class(read):
    doubled = [name.replace("train/", "train/train/").replace("val/", "val/Val/") for name in PLAIN]
    assert keys(read(*doubled)) == sorted(PLAIN)


def test_a_class_may_be_called_train(read):
    catalogue = read("train/train/0.JPEG", "train/bus/0.JPEG", "val/train/0.JPEG")
    assert catalogue.classes == ["bus", "train"]


def test_folders_around_the_splits_and_files_beside_them(read):
    around = [f"a/b/{name}" for name in PLAIN]
    catalogue = read(*around, "a/README", "LICENSE", "docs/index.html", "__MACOSX/a/b/train/a/._0.JPEG")
    assert keys(catalogue) == sorted(PLAIN) and len(catalogue.hidden) == 1
    assert set(ignored(catalogue)) == {"a/README", "LICENSE", "docs/index.html"}


def test_two_datasets_in_one_source_are_named(read):
    with pytest.raises(RefusedError, match=r"several datasets, one/train and two/train"):
        read(*(f"{folder}/{name}" for name in PLAIN for folder in ("one", "two")))


def test_what_lies_deeper_is_of_the_class_and_keeps_its_path(read):
    catalogue = read(*PLAIN, "train/a/2019/0.JPEG", "train/a/2020/0.JPEG")
    assert keys(catalogue) == sorted([*PLAIN, "train/a/2019/0.JPEG", "train/a/2020/0.JPEG"])
    assert catalogue.classes == ["a", "b"]


def test_the_error_on_duplicates_names_both_files(read):
    with pytest.raises(RefusedError, match=r"holds val/a/0.JPEG twice: val/a/0.JPEG and validation/a/0.JPEG"):
        read(*PLAIN, "validation/a/0.JPEG")


def test_class_folders_without_splits_need_a_holdout(read):
    catalogue = read(*(f"flowers/{label}/{i}.JPEG" for label in "ab" for i in range(4)), "flowers/README.txt")
    with pytest.raises(UserError, match=r"folders of 2 classes \(a, b\), but no train and val; say with --holdout N"):
        with_holdout(catalogue, 0)
    split = with_holdout(catalogue, 2)
    assert split.classes == ["a", "b"] and sorted(e.split for e in split.entries) == ["train"] * 6 + ["val"] * 2
    assert ignored(catalogue) == {"flowers/README.txt": "no image, by its name"}


def test_one_folder_of_images_is_no_dataset(read):
    with pytest.raises(RefusedError, match="none of what a source can be"):
        read("cells/JPEGImages/0.jpg", "cells/JPEGImages/1.jpg", "cells/about.xml")


FLAT = ["val/x1.JPEG", "val/x2.JPEG", "val/x3.JPEG"]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("val/val.csv", "file,label\nx1.JPEG,b\nx2.JPEG,a\nx3.JPEG,a\n"),
        ("val.csv", "label,image\nb,val/x1.JPEG\na,val/x2.JPEG\na,val/x3.JPEG\n"),
        ("labels.tsv", "x3\ta\nx2\ta\nx1\tb\n"),
        ("solution.csv", 'ImageId,PredictionString\nx1,b 1 2 3 4\nx2,a 1 2 3 4 a 5 6 7 8\nx3,"a 1 2 3 4"\n'),
        ("val/list.txt", "val/x1.JPEG b\nval/x2.JPEG a\nval/x3.JPEG a\n"),
        ("synset_labels.txt", "b\na\na\n"),
        ("val/windows.csv", "\ufefffile,label\r\nx1.JPEG,b\r\nx2.JPEG,a\r\nx3.JPEG,a\r\n"),
    ],
)
def test_a_flat_validation_folder_with_a_table_of_labels(read, table, text):
    catalogue = read(*TRAIN, *FLAT, files={table: text.encode()})
    assert labels(catalogue, "val") == {"x1.JPEG": "b", "x2.JPEG": "a", "x3.JPEG": "a"}
    assert "val/b/x1.JPEG" in keys(catalogue) and ignored(catalogue) == {table: "read for its labels"}


def test_tiny_imagenet(read):
    """As it is unpacked: a folder around it, boxes, lists of classes, unlabelled test images."""
    train = [f"t/train/n0{c}/images/n0{c}_{i}.JPEG" for c in "12" for i in range(2)]
    boxes = {f"t/train/n0{c}/n0{c}_boxes.txt": b"n01_0.JPEG\t0\t1\t2\t3\n" for c in "12"}
    lists = {"t/wnids.txt": b"n02\nn01\n", "t/words.txt": b"n01\tgoldfish\nn02\tshark\nn03\tray\n"}
    table = {"t/val/val_annotations.txt": b"val_0.JPEG\tn02\t0\t32\t44\t62\nval_1.JPEG\tn01\t52\t55\t57\t59\n"}
    images = ["t/val/images/val_0.JPEG", "t/val/images/val_1.JPEG", "t/test/images/test_0.JPEG"]
    catalogue = read(*train, *images, files=boxes | lists | table)
    assert catalogue.classes == ["n01", "n02"]
    assert labels(catalogue, "val") == {"val_0.JPEG": "n02", "val_1.JPEG": "n01"}
    assert "train/n01/images/n01_0.JPEG" in keys(catalogue) and "val/n02/val_0.JPEG" in keys(catalogue)
    assert "test/images/test_0.JPEG" in "".join(ignored(catalogue)) and found(catalogue) == 12


def test_the_ground_truth_of_ilsvrc_beside_a_flat_folder(read):
    truth = b"2\n1\n2\n"
    files = {"kit/data/meta.mat": meta_mat({"a": "first", "b": "second"}), "kit/data/truth.txt": truth}
    assert labels(read(*TRAIN, *FLAT, files=files), "val") == {"x1.JPEG": "b", "x2.JPEG": "a", "x3.JPEG": "b"}


def test_a_table_that_lacks_an_image_is_refused_by_name(read):
    with pytest.raises(RefusedError, match=r"val/x2.JPEG has no class in val.csv"):
        read(*TRAIN, *FLAT, files={"val.csv": b"file,label\nx1.JPEG,b\nx3.JPEG,a\n"})


def test_a_table_with_two_classes_for_an_image_is_refused_by_name(read):
    boxes = b"x1.JPEG a 1 2\nx2.JPEG b 1 2\nx3.JPEG a 1 2\nx1.JPEG b 3 4\n"
    with pytest.raises(RefusedError, match=r"val/x1.JPEG has two classes in boxes.txt, a and b; remove one row"):
        read(*TRAIN, *FLAT, files={"boxes.txt": boxes})
    named_twice = b"x1.JPEG;b\nx2.JPEG;a\nx3.JPEG;a\nx1.JPEG;b\n"
    catalogue = read(*TRAIN, *FLAT, files={"boxes.txt": boxes, "val.csv": named_twice})
    assert labels(catalogue, "val") == {"x1.JPEG": "b", "x2.JPEG": "a", "x3.JPEG": "a"}


def test_a_list_with_a_class_twice_is_refused(read):
    with pytest.raises(RefusedError, match=r"classes.txt names class tabby more than once"):
        read(*FLAT, files={"val.csv": b"x1,tabby cat\nx2,a\nx3,a\n", "classes.txt": b"tabby cat\na\ntabby dog\n"})


def test_a_list_of_classes_is_no_table_of_labels(read):
    catalogue = read(*TRAIN, *FLAT[:2], files={"names.txt": b"a\nb\n"})
    assert labels(catalogue, "val") == {}


def test_a_validation_set_alone_has_the_classes_of_its_list(read):
    files = {"val.csv": b"x1,b\nx2,a\nx3,a\n", "LOC_synset_mapping.txt": b"c a third\nb the second one\na first\n"}
    catalogue = read(*FLAT, files=files)
    assert catalogue.classes == ["c", "b", "a"] and catalogue.class_words["b"] == "the second one"
    assert labels(catalogue, "val") == {"x1.JPEG": "b", "x2.JPEG": "a", "x3.JPEG": "a"}


def test_a_validation_set_alone_without_a_list_says_what_it_needs(read):
    with pytest.raises(RefusedError, match="needs a file of all classes"):
        read(*FLAT, files={"val.csv": b"x1,b\nx2,a\nx3,a\n"})


def test_kaggles_validation_set_alone(make_folder):
    words = {"n02": "shark", "n01": "goldfish", "n03": "ray"}
    files = kaggle_files({}, [("n03", b"x"), ("n01", b"y")], words)
    catalogue = read_catalogue(LocalStorage(make_folder(files)))
    assert catalogue.classes == ["n01", "n02", "n03"] and catalogue.class_words == words
    assert keys(catalogue) == ["val/n01/ILSVRC2012_val_00000002.JPEG", "val/n03/ILSVRC2012_val_00000001.JPEG"]
    assert found(catalogue) == len(files)


def test_the_validation_archive_alone_with_its_kit(tmp_path):
    words = {"n02": "shark", "n01": "goldfish"}
    folder = write_ilsvrc(tmp_path / "ilsvrc", {"n01": {"x": b"x"}}, [("n02", b"x"), ("n01", b"y")], words)
    (folder / "ILSVRC2012_img_train.tar").unlink()
    catalogue = read_catalogue(LocalStorage(folder), check_md5=False)
    assert catalogue.classes == ["n01", "n02"] and {e.split for e in catalogue.entries} == {"val"}
    assert source_files(LocalStorage(folder)).count("\n") == 1
    (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(RefusedError, match="devkit"):
        read_catalogue(LocalStorage(folder), check_md5=False)


def test_one_class_composed_and_decomposed_is_one_class(read, caplog):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    with caplog.at_level(logging.WARNING, "resnet_pipeline"):
        catalogue = read(*TRAIN, f"train/{decomposed}/0.JPEG", f"train/{composed}/1.JPEG", f"val/{composed}/0.JPEG")
    assert catalogue.classes == ["a", "b", composed]
    assert f"train/{composed}/0.JPEG" in keys(catalogue) and "two ways" in caplog.text


def test_a_class_that_is_written_in_one_way_stays_as_it_is(read, caplog):
    decomposed = unicodedata.normalize("NFD", "café")
    assert decomposed in read(*TRAIN, f"train/{decomposed}/0.JPEG", f"val/{decomposed}/0.JPEG").classes
    assert not caplog.records


def test_a_link_to_a_folder_that_holds_it_ends_with_one_line(make_folder):
    folder = make_folder(dict.fromkeys(PLAIN, b"x"))
    (folder / "train/a/again").symlink_to(folder / "train")
    (folder / "train/b/again").symlink_to(folder)
    with pytest.raises(RefusedError, match=r"again is a link to a folder that holds it"):
        read_catalogue(LocalStorage(folder))
    assert len(source_files(LocalStorage(folder)).splitlines()) == len(PLAIN)


def test_links_to_files_and_folders_are_followed(tmp_path, make_folder):
    folder = make_folder(dict.fromkeys(PLAIN, b"x"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/9.JPEG").write_bytes(b"x")
    (folder / "train/c").symlink_to(tmp_path / "elsewhere")
    (folder / "train/a/link.JPEG").symlink_to(tmp_path / "elsewhere/9.JPEG")
    catalogue = read_catalogue(LocalStorage(folder))
    assert {"train/c/9.JPEG", "train/a/link.JPEG"} <= set(keys(catalogue))


def test_an_archive_has_the_account_of_the_folder(read, tmp_path):
    names = [*PLAIN, "README.md", "val/9.JPEG", "train/a/Thumbs.db"]
    folder = read(*names)
    tar_of(tmp_path / "x.tar.gz", {name: name.encode() for name in sorted(names)}, "w:gz")
    archive = read_catalogue(LocalStorage(tmp_path), "x.tar.gz")
    assert (archive.hidden, archive.ignored, keys(archive)) == (folder.hidden, folder.ignored, keys(folder))
