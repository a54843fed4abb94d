"""The commands over kept scores, from the outside."""

from __future__ import annotations

import json

import pytest
import torch

from resnet_pipeline.evaluation import scoring
from resnet_pipeline.models import build_model
from tests.images import jpeg
from tests.json_keys import check_keys
from tests.workspaces import with_digits


@pytest.fixture
def run(run, tmp_path, monkeypatch, digits):
    monkeypatch.setenv("COLUMNS", "200")
    with_digits(tmp_path / "work", digits)
    for depth in (8, 14):
        torch.manual_seed(depth)
        torch.save(build_model(f"cifar-resnet{depth}").state_dict(), tmp_path / f"{depth}.pth")

    return run


@pytest.fixture
def models(tmp_path):
    return [f"cifar-resnet{depth}={tmp_path / f'{depth}.pth'}" for depth in (8, 14)]


ON = ("--dataset", "digits", "--protocol", "center", "--images", "80", "--quiet")


@pytest.mark.slow
def test_scores_are_analysed_with_figure_and_real_labels(run, models, tmp_path, digits):
    right = {
        key: [int(label)] for key, label in zip(digits.splits["val"].keys, digits.splits["val"].labels, strict=True)
    }
    (tmp_path / "real.json").write_text(json.dumps(right))
    code, out, err = run(
        "analyse", *models, *ON, "--real-labels", str(tmp_path / "real.json"), "--figure", str(tmp_path / "r.png"),
        "--json", str(tmp_path / "a.json"),
    )  # fmt: skip
    assert code == 0, err
    for words in ("calibration error", "Worst classes", "Most frequent confusions", "McNemar's p", "ReaL"):
        assert words in out
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    values = json.loads((tmp_path / "a.json").read_text())
    for network in values["models"]:
        assert network["real"]["top1"] == pytest.approx(network["top1"])
        low, high = network["top1_interval"]
        assert low <= network["top1"] <= high and sum(b["images"] for b in network["reliability"]) == 80
        assert sum(c["images"] for c in network["classes"]) == 80
    assert len(values["pairs"]) == 1


@pytest.mark.slow
def test_an_ensemble_of_score_files_needs_no_dataset(run, models, tmp_path):
    code, _, err = run("evaluate", *models, *ON, "--json", str(tmp_path / "e.json"))
    assert code == 0, err
    rows = json.loads((tmp_path / "e.json").read_text())["models"]
    code, out, err = run(
        "ensemble", *(row["scores"] for row in rows), "--combine", "logits", "--fit-weights", "--greedy",
        "--contributions", "--json", str(tmp_path / "m.json"),
    )  # fmt: skip
    assert code == 0, err
    for words in ("Weights fitted on 40 images", "Reported on the other 40", "Best member added", "without one member"):
        assert words in out
    values = json.loads((tmp_path / "m.json").read_text())
    assert [m["top1"] for m in values["models"]] == [row["top1"] for row in rows]
    assert len(values["greedy"]) == len(values["without"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--fit-weights", "--greedy", "--contributions")])
def test_an_ensemble_reads_each_kept_score_file_once_and_no_new_one(run, models, score_files, more):
    read, written = score_files
    assert run("ensemble", *models, *ON, *more)[0] == 0
    assert (len(read), len(written)) == (0, 2), "two new networks"
    written.clear()
    assert run("ensemble", *models, *ON, *more)[0] == 0
    assert (len(read), len(set(read)), len(written)) == (2, 2, 0), "two kept ones"
    kept = [str(path) for path in read]
    read.clear()
    assert run("ensemble", *kept, *more)[0] == 0
    assert (sorted(map(str, read)), written) == (sorted(kept), []), "their files"


@pytest.mark.slow
def test_a_test_in_chunks_reads_none_of_what_it_wrote(run, models, score_files, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK_PIXELS", 40 * 32 * 32)
    read, written = score_files
    assert run("evaluate", models[0], *ON)[0] == 0
    assert (len(read), len(written)) == (0, 3), "two chunks and the score file"


@pytest.mark.slow
def test_layer_responses_and_their_figure(run, models, tmp_path):
    code, out, err = run(
        "responses", *models, "--dataset", "digits", "--images", "20", "--figure", str(tmp_path / "f.svg"),
        "--json", str(tmp_path / "f.json"),
    )  # fmt: skip
    assert code == 0, err
    found = json.loads((tmp_path / "f.json").read_text())
    assert [len(found[model]["std"]) for model in models] == [7, 13] and "13" in out
    assert (tmp_path / "f.svg").read_text().startswith("<?xml")


@pytest.mark.slow
def test_weights_and_network_may_be_options(run, tmp_path):
    code, _, err = run(
        "evaluate", "--weights", str(tmp_path / "8.pth"), "--network", "cifar-resnet8", *ON, "--float16",
        "--scales", "36,32", "--average", "logits", "--json", str(tmp_path / "e.json"),
    )  # fmt: skip
    assert code == 0, err
    (row,) = json.loads((tmp_path / "e.json").read_text())["models"]
    assert row["protocol"] == "center-32-of-32-36-logits" and row["images"] == 80


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluate", "ensemble", "ensemble of files", "analyse", "data stats"])
def test_json_keeps_its_keys(run, models, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    if name == "ensemble of files":
        run("evaluate", *models, *ON)
        for number, file in enumerate(sorted((tmp_path / "work" / "scores").rglob("*.parquet"))):
            file.rename(tmp_path / f"{number}.parquet")
    check_keys(name, run, tmp_path / "keys.json")


def test_json_of_staging_keeps_its_keys(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    (photos / "train" / "cat" / "broken.JPEG").write_bytes(b"no image")
    (photos / "train" / "cat" / "cmyk.JPEG").write_bytes(jpeg(40, 30, mode="CMYK"))
    check_keys("stage", run, tmp_path / "keys.json")


def test_a_submission_is_checked(run, tmp_path):
    (tmp_path / "s.txt").write_text("1 2 3 4 5\n")
    code, out, _ = run("check-submission", str(tmp_path / "s.txt"), "--images", "1")
    assert code == 0 and "good" in out
    code, _, err = run("check-submission", str(tmp_path / "s.txt"))
    assert code == 2 and "100,000" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["evaluate", *ON], "--weights"),
        (["evaluate", "--weights", "x.pth", *ON], "--network"),
        (["evaluate", "--network", "resnet50", *ON], "--weights"),
        (["evaluate", "x=y.pth", *ON, "--scales", "224;256"], "--scales"),
        (["evaluate", "cifar-resnet8=8.pth", *ON], "8.pth"),
        (["evaluate", "torchvision:vgg16", *ON], "torchvision:vgg16"),
        (["ensemble", "gone.parquet"], "gone.parquet"),
        (["ensemble", "resnet50=x.pth"], "--dataset"),
        (["ensemble", "gone.parquet", "--combine", "votes"], "--combine"),
        (["ensemble", "gone.parquet", *ON, "--register", "x"], "gone.parquet can't be registered"),
        (["ensemble", "x=y.pth", "--register", "x"], "name its models, and --dataset"),
        (["ensemble", "x=y.pth", *ON, "--register", "a/b"], "model name"),
        (["ensemble", "x=y.pth", *ON, "--register", "x", "--combine", "logits"], "not logits"),
        (["analyse", "gone.parquet"], "gone.parquet"),
        (["submission", "gone.parquet", "--dataset", "digits", "--classes", "gone.mat", "--output", "s"], "gone.mat"),
        (["responses", "x=y.pth", "--dataset", "digits", "--split", "nosplit"], "nosplit"),
        (["check-submission", "gone.txt"], "gone.txt"),
        (["report", "x=y.pth", "--dataset", "digits"], "x=y.pth is no run directory"),
        (["promote", "no/where"], "no/where is no registered model"),
        (["export", "ilsvrc2015", "o.onnx"], "ilsvrc2015 stands for 6 networks"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, arguments, named):
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("resnet-pipeline: ") and len(err.strip().splitlines()) == 1
    assert named in err
