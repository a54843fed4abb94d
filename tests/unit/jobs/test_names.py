"""Names that no terminal, table or page should get as they are, on their way from a source to every output."""

from __future__ import annotations

import csv
import json
import os

import pyarrow.parquet as pq
import pytest
import torch

from resnet_pipeline.config import ViewConfig
from resnet_pipeline.evaluation.trained_model import Member
from resnet_pipeline.jobs import predict
from resnet_pipeline.jobs.data import verify_dataset
from resnet_pipeline.jobs.stage import stage_dataset
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.names import escaped, original
from resnet_pipeline.sources.layouts import read_catalogue
from resnet_pipeline.staging.area import catalogue_of, listing_of
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.workspace import Workspace
from tests.images import jpeg
from tests.unit.sources.archives_made import tar_of

ODD = "x\udcff\n\x1b[31m.JPEG"
CLASSES = ("caf\udce9", "=1+1")
SHOWN = "x\\xff\\x0a\\x1b[31m.JPEG"


@pytest.fixture
def source(tmp_path):
    """Return a folder with a class and images whose names are no UTF-8, hold a new line or look like a formula."""
    for split in ("train", "val"):
        for number, label in enumerate(CLASSES):
            folder = tmp_path / "source" / split / label
            folder.mkdir(parents=True)
            (folder / ODD).write_bytes(jpeg(20, 30, seed=number))
    return tmp_path / "source"


def test_a_source_of_odd_names_is_staged_and_verified(source, tmp_path, capsys):
    workspace = Workspace(tmp_path / "work")
    staged = stage_dataset(workspace, str(source), "odd", workers=1)
    found = verify_dataset(workspace, "odd", threads=1)
    assert found.good and found.dataset.classes == ["=1+1", "caf\\xe9"]
    assert sorted(found.dataset.splits["val"].keys) == [f"val/=1+1/{SHOWN}", f"val/caf\\xe9/{SHOWN}"]
    assert sorted(map(original, found.dataset.classes)) == sorted(CLASSES)
    assert "\x1b" not in capsys.readouterr().out and staged.address


def test_odd_names_survive_a_staging_that_is_broken_off(source):
    catalogue = read_catalogue(LocalStorage(source))
    again = catalogue_of(listing_of(catalogue), catalogue.storage)
    assert again.entries == catalogue.entries
    assert [data[:2] for data in again.read(again.entries)] == [b"\xff\xd8"] * 4


def test_an_archive_of_odd_names_has_those_of_the_folder(source, tmp_path):
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.JPEG"))
    tar_of(tmp_path / "x.tar", {name: (source / name).read_bytes() for name in names})
    folder, archive = (read_catalogue(LocalStorage(source)), read_catalogue(LocalStorage(tmp_path), "x.tar"))
    assert sorted(e.key for e in archive.entries) == sorted(e.key for e in folder.entries)


@pytest.fixture
def predicted(tmp_path, monkeypatch):
    """Return a function that predicts a folder with a network of odd classes, and returns the output's path."""
    network = Classifier(Normalize(torch.full((3,), 90.0)), build_model("cifar-resnet8", num_classes=2))
    names = tuple(map(escaped, CLASSES))
    views = ViewConfig(crop=16, resize=18)
    member = Member(
        name="m", classifier=network.eval(), views=views, weights_sha256="0", network="cifar-resnet8", classes=names,
        class_words=names,
    )  # fmt: skip
    monkeypatch.setattr(predict, "named_members", lambda *_: [member])

    def run(folder, ending):
        output = tmp_path / f"out.{ending}"
        predict.predict_folder(Workspace(tmp_path / "work"), "m", folder, output, top=2)
        return output

    return run


def test_predictions_of_odd_names_are_written_in_each_format(source, predicted):
    names = sorted(escaped(path.relative_to(source).as_posix()) for path in source.rglob("*.JPEG"))
    assert sorted(row["file"] for row in json.loads(predicted(source, "json").read_text("utf-8"))) == names
    assert sorted(pq.read_table(predicted(source, "parquet")).column("file").to_pylist()) == names
    with predicted(source, "csv").open(newline="", encoding="utf-8") as file:
        assert sorted(row["file"] for row in csv.DictReader(file)) == names


@pytest.mark.parametrize("first", "=+-@")
def test_no_cell_of_a_csv_is_a_formula(tmp_path, predicted, first):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{first}cmd.jpg").write_bytes(jpeg(20, 30))
    (tmp_path / "in" / f"{first}broken.jpg").write_bytes(b"x")
    with predicted(tmp_path / "in", "csv").open(newline="") as file:
        good, broken = csv.DictReader(file)
    assert (good["file"], broken["file"]) == (f"'{first}cmd.jpg", f"'{first}broken.jpg")
    assert {good["label_1"], good["label_2"]} == {"'=1+1", "caf\\xe9"} and 0 < float(good["probability_2"]) < 1


def test_predict_follows_links_as_stage_does(tmp_path, predicted):
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.jpg").write_bytes(jpeg(20, 30))
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    os.link(tmp_path / "elsewhere" / "1.jpg", tmp_path / "in" / "2.jpg")
    (tmp_path / "in" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "in" / "loop").symlink_to("loop")
    rows = json.loads(predicted(tmp_path / "in", "json").read_text())
    assert [(row["file"], row["error"]) for row in rows] == [
        ("2.jpg", None), ("linked/1.jpg", None), ("loop", "not a regular file"),
    ]  # fmt: skip
