"""Detectors from a run to a served version, on a real MLflow: result files, precision, the gate, pictures."""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.csv
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import load_model

from resnet_pipeline import cli
from resnet_pipeline.adapters.mlflow.registry import fetch_card, resolve
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.detection import finding, task_of
from resnet_pipeline.detection.finding import find_objects
from resnet_pipeline.detection.improvements import Improvements
from resnet_pipeline.detection.metrics import coco_metrics, paired_difference
from resnet_pipeline.detection.results import ImageFound, Results, ResultsFacts
from resnet_pipeline.detection.trained import load_detector
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.trained_model import load_folder
from resnet_pipeline.jobs import keep_transfers, search
from resnet_pipeline.jobs.detect import (
    DetectionTest,
    evaluate_detectors,
    evaluate_detectors_together,
)
from resnet_pipeline.jobs.explore_detector import detection_explorer
from resnet_pipeline.jobs.predict_objects import predict_objects
from resnet_pipeline.jobs.promote import PromotionRefusedError
from resnet_pipeline.jobs.promote_results import promote_by_results
from resnet_pipeline.jobs.register_detector import register_detector
from resnet_pipeline.jobs.tasks import all_detectors, named_task
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.report.kept import read_kept
from resnet_pipeline.sources.scenes import write_scenes
from resnet_pipeline.staging.stage import Source, pack
from resnet_pipeline.storage.local import LocalStorage
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace
from tests.packing import InThisProcess
from tests.workspaces import with_database

pytestmark = pytest.mark.slow
NAME = "scenes-maskrcnn-resnet8-c4"
TEST = DetectionTest(dataset="scenes", samples=20)


@pytest.fixture(scope="module")
def space(tmp_path_factory, mlflow_database):
    """Return a workspace with small scenes, and two runs of two steps, which find something everywhere."""
    workspace = with_database(Workspace.of(tmp_path_factory.mktemp("detectors") / "work"), mlflow_database)
    write_scenes(workspace.root / "source", {"train": 8, "val": 4})
    pack(Source.at(workspace.root / "source"), LocalStorage(workspace.root / "datasets" / "scenes"), name="scenes",
         workers=InThisProcess)  # fmt: skip
    dataset = open_dataset(workspace, "scenes")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    short = {
        "steps": 2,
        "batch": 4,
        "schedule.warmup": 0,
        "optim.lr": 1e-6,
        "optim.frozen_stages": None,
        "detection.least_score": 0.0,
    }
    for seed in (0, 1):
        config = with_overrides(get_recipe("scenes/maskrcnn-resnet8-c4"), {**short, "seed": seed})
        run = RunDirectory.create(workspace.runs, config, dataset.facts)
        assert train(run, dataset, LocalContext(), task=task_of(config, dataset, LocalContext()))
    torch.set_num_threads(threads)
    return workspace


def trained(workspace, seed=0):
    (run,) = (run for path in workspace.runs.iterdir() if (run := RunDirectory(path)).config().seed == seed)
    return TrainedRun(run=run, result=run.result(), mlflow_run="", mlflow_page="", reused=False)


def perfect(dataset, split="val", *, jitter=0.0):
    """Return results that find each object; ``jitter`` moves the boxes, as a part of their size."""
    found = []
    for sample in range(len(dataset.splits[split])):
        there = dataset.splits[split].objects.of(sample)
        moved = there.box + jitter * np.tile(there.box[:, 2:] - there.box[:, :2], 2)
        found.append(ImageFound(box=moved, score=np.full(len(there), 0.9), label=there.label.astype(np.int64)))
    return Results(split=split, found=found)


def test_what_is_found_is_kept_and_gives_the_figures_of_training(space):
    run = trained(space).run
    (first,) = evaluate_detectors(space, [str(run.path)], TEST)
    (again,) = evaluate_detectors(space, [run.name], dataclasses.replace(TEST, voc="11"))
    assert (first.reused, again.reused) == (False, True) and again.path == first.path
    assert first.boxes == again.boxes and again.voc is not None and 0 <= again.voc[0] <= 100
    assert first.boxes.ap == pytest.approx(run.result().validation["ap"], abs=1e-9)
    assert first.masks.ap == pytest.approx(run.result().validation["mask_ap"], abs=1e-9)
    entries = json.loads(first.path.read_text())
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} == set(entries[0])
    # a file that was changed is computed again
    content = first.path.read_bytes()
    first.path.write_text("[]")
    (mended,) = evaluate_detectors(space, [run.name], TEST)
    assert not mended.reused and first.path.read_bytes() == content


def test_improvements_are_switches_of_a_test_alone(space, tmp_path, monkeypatch, capsys):
    """Each has result files of its own; with a member twice an ensemble is that member, which NMS leaves once."""
    one, two = (str(trained(space, seed).run.path) for seed in (0, 1))
    (plain,) = evaluate_detectors(space, [one], TEST)
    refined = dataclasses.replace(TEST, improvements=Improvements(refinement=True, scales=(48, 72)))
    (other,) = evaluate_detectors(space, [one], refined)
    assert other.protocol == plain.protocol + "-refined-scales-48-72" and other.path != plain.path
    assert not other.reused and evaluate_detectors(space, [one], refined)[0].reused
    assert evaluate_detectors(space, [one], TEST)[0].path == plain.path
    both = evaluate_detectors_together(space, [one, two], TEST)
    assert both.reference == f"{one} + {two}" and both.protocol == plain.protocol and both.path != plain.path
    assert evaluate_detectors_together(space, [one, one], TEST).path == plain.path
    changed = [json.loads(each.path.read_text()) for each in (plain, other, both)]
    assert changed[0] != changed[1] and changed[0] != changed[2] and changed[1][0].keys() == changed[0][0].keys()
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(space.root))
    for words in (["evaluate", one, "--refine", "--scales", "48,72"], ["ensemble", one, two]):
        monkeypatch.setattr("sys.argv", ["resnet-pipeline", *words, "--dataset", "scenes", "--json", "-"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = json.loads(capsys.readouterr().out)["models"][0]
        assert ended.value.code == 0 and said["reused"], words
        assert said["scores"] == str(other.path if words[0] == "evaluate" else both.path)


@pytest.mark.parametrize("members", [1, 2])
def test_a_test_that_is_stopped_goes_on_with_the_images_that_are_missing(space, monkeypatch, members):
    """Of one detector, and of several together."""
    names, searched = [trained(space, seed).run.name for seed in range(members)], []

    def stopped_after(parts):
        def find(model, dataset, split, *arguments, **options):
            if len(searched) == parts:
                raise KeyboardInterrupt
            searched.append(dataset.splits[split].keys)
            return find_objects(model, dataset, split, *arguments, **options)

        monkeypatch.setattr(finding, "find_objects", find)

    test = dataclasses.replace(TEST, split="train", images=7)
    whole = evaluate_detectors_together(space, names, test)
    content = whole.path.read_bytes()
    whole.path.unlink()
    monkeypatch.setattr(search, "PART_IMAGES", 5)  # one micro-batch of four
    stopped_after(1)
    with pytest.raises(KeyboardInterrupt):
        evaluate_detectors_together(space, names, test)
    assert len(list(whole.path.with_suffix(".parts").iterdir())) == 2 and not whole.path.exists()
    stopped_after(2)
    again = evaluate_detectors_together(space, names, test)
    assert [len(keys) for keys in searched] == [4, 3] and searched[0] != searched[1]
    assert not whole.path.with_suffix(".parts").exists()
    assert not again.reused and again.path == whole.path and again.seconds > 0
    for one, other in zip(again.results.found, whole.results.found, strict=True):
        np.testing.assert_allclose(one.box, other.box, atol=1e-9)
        assert one.mask == other.mask and (one.label == other.label).all() and (one.score == other.score).all()
    assert json.loads(content)[0]["score"] == json.loads(whole.path.read_text())[0]["score"]


@pytest.mark.parametrize("verb", ["evaluate", "ensemble"])
def test_some_images_of_a_split_are_a_test_of_their_own(space, monkeypatch, capsys, verb):
    names = [trained(space, seed).run.name for seed in range(2 if verb == "ensemble" else 1)]
    whole = evaluate_detectors_together(space, names, TEST)
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(space.root))
    words = ["resnet-pipeline", verb, *names, "--voc", "11", "--dataset", "scenes", "--images", "2", "--json", "-"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit):
        cli.main()
    (said,) = json.loads(capsys.readouterr().out)["models"]
    assert said["images"] == 2 and said["protocol"] == f"{whole.protocol}-2-images"
    dataset = open_dataset(space, "scenes").part("val", np.array([0, 2]))
    some = Results(split="val", found=[whole.results.found[i] for i in (0, 2)])
    assert said["ap"] == pytest.approx(coco_metrics(dataset, some).ap, abs=1e-3)
    assert said["voc"]["map"] >= 0
    wrong = ("--hardware", "8xa100") if verb == "evaluate" else ("--register", "mine")
    monkeypatch.setattr("sys.argv", [*words, *wrong])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code and f"leave {wrong[0]} out" in capsys.readouterr().err


def test_what_a_detector_comes_to_is_kept_for_the_page_of_the_paper(space, tmp_path, monkeypatch):
    run = trained(space).run
    (found,) = evaluate_detectors(space, [run.name], dataclasses.replace(TEST, voc="11", samples=500))
    assert keep_transfers.keep_transfers(space, tmp_path) == [], "its recipe is none of the paper's"
    monkeypatch.setattr(keep_transfers, "_RECIPES", {"scenes/maskrcnn-resnet8-c4"})
    assert keep_transfers.keep_transfers(space, tmp_path)
    (kept,) = [each for each in read_kept(tmp_path).transfers if each.run == run.name and not each.test]
    assert kept.images == 4 and kept.paper_steps == 400 and kept.steps == 2 and "batch=4" in kept.changes
    assert kept.figures["AP"][0] == pytest.approx(found.boxes.ap, abs=1e-3)
    assert kept.figures["AP50"][1:] == pytest.approx(found.boxes.intervals[1], abs=1e-3)
    assert kept.figures["mAP"][0] == pytest.approx(found.voc[0], abs=1e-3)
    # an ensemble is kept with its members, and stands in a row for as many as they are
    names = [trained(space, seed).run.name for seed in (0, 1)]
    both = evaluate_detectors_together(space, names, TEST)
    keep_transfers.keep_transfers(space, tmp_path)
    (kept,) = [each for each in read_kept(tmp_path).transfers if each.members]
    assert kept.members == tuple(names) and kept.figures["AP"][0] == pytest.approx(both.boxes.ap, abs=1e-3)
    assert kept.command == f"resnet-pipeline ensemble {' '.join(names)} --dataset scenes" and "seed" not in kept.changes
    trained(space, 1).run.result_file.rename(tmp_path / "result.json")  # a member that is not finished any more
    (tmp_path / "transfers" / f"{kept.name}.json").unlink()
    kept_now = keep_transfers.keep_transfers(space, tmp_path)
    (tmp_path / "result.json").rename(space.runs / names[1] / "result.json")
    assert kept_now and not any(each.members for each in read_kept(tmp_path).transfers)


def test_the_explorer_shows_what_a_detector_gets_wrong(space, monkeypatch, capsys):
    dataset, run = open_dataset(space, "scenes"), trained(space).run
    (evaluation,) = evaluate_detectors(space, [run.name], TEST)
    results = perfect(dataset)
    first = dataset.splits["val"].objects.of(0)
    results.found[0] = ImageFound(  # the first is taken for another, the second is missed
        box=results.found[0].box[[0, *range(2, len(first))]],
        score=results.found[0].score[1:],
        label=np.array([(first.label[0] + 1) % 10, *first.label[2:]], np.int64),
    )
    data = detection_explorer(dataset, dataclasses.replace(evaluation, results=results), mistakes=9)
    (image,) = data.images
    names = dataset.classes
    assert image.key == dataset.splits["val"].keys[0] and data.wrong == 1 and not image.invented
    assert image.missed == [names[first.label[1]]]
    assert image.confused == [(names[first.label[0]], names[(first.label[0] + 1) % 10])]
    assert {(pair.there, pair.found, pair.count) for pair in data.confusions} == {
        (names[first.label[1]], "nothing", 1), (*image.confused[0], 1),
    }  # fmt: skip
    everything = sum(len(dataset.splits["val"].objects.of(i)) for i in range(4))
    assert sum(row.objects for row in data.classes) == everything == 2 + sum(row.right for row in data.classes)
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(space.root))
    monkeypatch.setattr("sys.argv", ["resnet-pipeline", "explore", run.name, "--dataset", "scenes"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    page = space.reports / f"errors-scenes-{run.name[-80:]}-objects.html"
    assert ended.value.code == 0 and str(page) in capsys.readouterr().out and "Worst images" in page.read_text()


def test_detectors_are_told_from_classifiers(space, make_run):
    run = trained(space).run
    assert named_task(space, str(run.path)) == "detection" and named_task(space, "nothing") == "classification"
    with pytest.raises(UserError, match="holds a detector"):
        load_folder(run.path)
    other = make_run()
    with pytest.raises(UserError, match=r"is a detector and .* is none"):
        all_detectors(space, [str(run.path), str(other.path)])
    shutil.copy(run.weights_file, other.weights_file)
    with pytest.raises(UserError, match="is for classification, and a detector is needed here"):
        load_detector(other.path)


def test_the_paired_difference_is_that_of_the_precisions(space):
    dataset = open_dataset(space, "scenes")
    good, worse = perfect(dataset), perfect(dataset, jitter=0.15)
    by, (low, high) = paired_difference(dataset, good, worse, samples=50)
    assert by == pytest.approx(coco_metrics(dataset, good).ap - coco_metrics(dataset, worse).ap, abs=1e-9)
    assert 0 < low <= by <= high
    assert paired_difference(dataset, good, good, samples=50) == (0.0, (0.0, 0.0))
    empty = ImageFound(box=np.zeros((0, 4)), score=np.zeros(0), label=np.zeros(0, np.int64))
    nothing = Results(split="val", found=[empty] * 4)
    assert paired_difference(dataset, nothing, good, samples=5)[0] == pytest.approx(-100)


def test_a_detector_is_registered_gated_and_served(space, tmp_path, monkeypatch, capsys):
    dataset, tracking = open_dataset(space, "scenes"), Tracking(space)
    versions, scores = [], []
    for seed in (0, 1):
        one = trained(space, seed)
        (evaluation,) = evaluate_detectors(space, [str(one.run.path)], TEST)
        versions.append(register_detector(space, one, evaluation))
        scores.append(evaluation.results.found[0].score.tolist())
        assert not register_detector(space, one, evaluation).new
        assert (one.run.path / "pictures" / f"{evaluation.protocol}.png").stat().st_size > 1_000
    first, second = (resolve(tracking, version.uri) for version in versions)
    assert (first.version, second.version) == ("1", "2") and first.tags["task"] == "detection"
    low, high = map(float, first.tags["boxes_ap_interval"].split(" to "))
    assert low <= high
    card = fetch_card(tracking, first)
    assert (
        "## Average precision" in card and "0, 1, 2, 3" in card and "| masks |" in card and "object detection" in card
    )
    # the gate: the first passes, one that is not better does not, one that is does
    assert "first champion" in promote_by_results(space, first.uri).reason
    keep(space, dataset, second, perfect(dataset, jitter=0.4))
    keep(space, dataset, first, perfect(dataset, jitter=0.1))
    with pytest.raises(PromotionRefusedError, match="on the same 4 images: worse by"):
        promote_by_results(space, second.uri)
    keep(space, dataset, second, perfect(dataset))
    assert "on the same 4 images: better by" in promote_by_results(space, f"{NAME}@candidate").reason
    # serving: a JPEG in, boxes out, the same as those of the result files' own code
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.address)
    data = dataset.splits["val"].encoded(0).tobytes()
    served = load_model(f"models:/{NAME}/1")
    (row,) = served.predict(pd.DataFrame({"image": [data]}), params={"least_score": 0.0}).to_dict("records")
    kept = sorted((score for score in scores[0] if score >= 0.0), reverse=True)
    assert row["scores"] == pytest.approx(kept) and len(row["boxes"]) == len(row["labels"]) == len(row["masks"])
    assert json.loads(row["masks"][0])["size"] == [72, 96]
    text = base64.b64encode(data).decode()
    assert served.predict(pd.DataFrame({"image": [text]}), params={"least_score": 0.0})["scores"][0] == row["scores"]
    with pytest.raises(MlflowException, match="least_score must lie"):
        served.predict(pd.DataFrame({"image": [data]}), params={"least_score": 2.0})
    # predictions of a folder, with pictures
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(data)
    (tmp_path / "images" / "b.jpg").write_text("no image")
    found = predict_objects(
        space, NAME, tmp_path / "images", tmp_path / "out.csv", least_score=0.0, pictures=tmp_path / "drawn"
    )
    assert found.images == 1 and found.broken[0][0] == "b.jpg"
    table = pyarrow.csv.read_csv(tmp_path / "out.csv").to_pylist()
    assert table[-1]["file"] == "b.jpg" and table[-1]["error"] and table[0]["score"] >= 0.0
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["a.jpg.png"]
    # the commands
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(space.root))
    monkeypatch.setattr("sys.argv", ["resnet-pipeline", "evaluate", NAME, "--dataset", "scenes", "--voc", "all"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0 and "AP50" in capsys.readouterr().out


def keep(workspace, dataset, version, results):
    """Put results in the place of what a version's detector finds."""
    from resnet_pipeline.jobs.detect import results_path

    tags = version.tags
    path = results_path(workspace, dataset.fingerprint, "val", tags["protocol"], tags["weights_sha256"])
    results.write(dataset, path)
    ResultsFacts(
        weights_sha256=tags["weights_sha256"], dataset_fingerprint=dataset.fingerprint, split="val",
        protocol=tags["protocol"], seconds=1.0,
    ).keep(path)  # fmt: skip


def test_the_evaluation_s_flows_take_detectors(space, monkeypatch):
    """Alone and together, with a table of their precision and pictures of what they find in the tested images."""
    from flows import boxes
    from flows import evaluate as flows
    from flows.shell import outcome

    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(space.root))
    tables, pictures = [], []
    monkeypatch.setattr(boxes, "table", lambda key, rows, description: tables.append(rows))
    monkeypatch.setattr(boxes, "create_markdown_artifact", lambda **given: pictures.append(given))
    for task in ("find", "draw"):  # without Prefect, which would start a server here
        monkeypatch.setattr(boxes, task, getattr(boxes, task).fn)
    names = [trained(space, seed).run.name for seed in (0, 1)]
    alone = flows.evaluate.fn(models=names, dataset="scenes", images=3, voc="all")
    both = flows.ensemble_evaluate.fn(members=names, dataset="scenes", images=3)
    assert [row["images"] for row in (*alone, both["ensemble"])] == [3, 3, 3] and both["version"] is None
    assert alone[0]["voc"]["map"] >= 0 and both["ensemble"]["model"] == " + ".join(names)
    assert [(row["detector"], row["of"]) for row in tables[0]] == [(n, k) for n in names for k in ("boxes", "masks")]
    assert len(pictures) == 3 and all("data:image/jpeg;base64," in given["markdown"] for given in pictures)
    assert space.scores in next(space.scores.rglob("*.png")).parents
    for given, said in (
        ({}, "name it with --dataset"),
        ({"dataset": "scenes", "registered_as": "mine"}, "leave --register out"),
        ({"dataset": "scenes", "members": [names[0], "digits-resnet8"]}, "is none: test them in two commands"),
    ):
        with pytest.raises(UserError, match=said):
            outcome(flows.ensemble_evaluate.fn(**({"members": names} | given)))
