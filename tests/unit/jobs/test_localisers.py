"""Localisers from a run to a served version, on a real MLflow: result files, errors, the gate, pictures."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.csv
import pytest
import torch
from fastapi.testclient import TestClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import load_model, scoring_server

from resnet_pipeline import cli
from resnet_pipeline.adapters.mlflow.registry import CHAMPION, alias_of, fetch_card, resolve
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.detection import task_of
from resnet_pipeline.detection.results import ImageFound, Results, ResultsFacts, read_results
from resnet_pipeline.detection.trained_localiser import find_by_classes
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs import localiser_boxes, search
from resnet_pipeline.jobs.detect import results_path
from resnet_pipeline.jobs.localise import localise
from resnet_pipeline.jobs.predict_objects import predict_objects
from resnet_pipeline.jobs.promote import PromotionRefusedError
from resnet_pipeline.jobs.promote_results import promote_by_results
from resnet_pipeline.jobs.proposals import proposed
from resnet_pipeline.jobs.register_localiser import register_localiser
from resnet_pipeline.jobs.register_trained import register_trained
from resnet_pipeline.jobs.tasks import named_task
from resnet_pipeline.jobs.train import TrainedRun
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace
from tests.unit.detection.conftest import located  # noqa: F401 - a fixture
from tests.unit.detection.test_localisation import config
from tests.unit.detection.test_regions import region_config
from tests.workspaces import with_database

pytestmark = pytest.mark.slow
NAME, CLASSIFIER = "ilsvrc-loc-resnet101", "d-resnet8"
RCNN = "ilsvrc-loc/rcnn-resnet101"
WIDE = {
    "model.name": "cifar-resnet8", "model.mean": "channel", "augment.crop": 32, "augment.shorter_side": [32, 36],
    "views.crop": 32, "views.resize": 32, "views.scales": [32, 40], "localisation.norm": "batch",
    "localisation.anchor_sizes": [12, 20], "batch": 8, "micro_batch": 4,
}  # fmt: skip
"""What makes the paper's recipe small."""


@pytest.fixture(scope="module")
def space(tmp_path_factory, mlflow_database, located):  # noqa: F811
    """Return a workspace with images of two classes, a registered classifier, and two localisers of two steps."""
    workspace = with_database(Workspace.of(tmp_path_factory.mktemp("localisers") / "work"), mlflow_database)
    Path(workspace.data).mkdir(parents=True)
    (Path(workspace.data) / "d").symlink_to(located.path)
    dataset, threads = open_dataset(workspace, "d"), torch.get_num_threads()
    torch.set_num_threads(1)
    own = [config(steps=2, recipe="ilsvrc-loc/resnet101", seed=seed) for seed in (0, 1)]
    for each in (*own, dataclasses.replace(own[0], localisation=None, recipe="d/resnet8", bn_images=16)):
        run = RunDirectory.create(workspace.runs, each, dataset.facts)
        assert train(run, dataset, LocalContext(), task=task_of(each, dataset, LocalContext()))
    register_trained(workspace, trained(workspace, recipe="d/resnet8"))
    changed, found = proposed(workspace, region_config(steps=2), "d", trained(workspace).run.name)
    run = RunDirectory.create(workspace.runs, changed, dataset.facts)
    found.keep(run)
    assert train(run, dataset, LocalContext(), task=task_of(changed, dataset, LocalContext(), run=run))
    yield workspace
    torch.set_num_threads(threads)


def trained(workspace, seed=0, recipe="ilsvrc-loc/resnet101"):
    runs = [RunDirectory(path) for path in workspace.runs.iterdir()]
    (run,) = (run for run in runs if (run.config().seed, run.config().recipe) == (seed, recipe))
    return TrainedRun(run=run, result=run.result(), mlflow_run="", mlflow_page="", reused=False)


def pair(space):
    """Return the localiser, and the R-CNN that was trained on its boxes."""
    return trained(space), trained(space, recipe=RCNN)


def boxes(dataset, *, right: bool):
    """Return a result of a localiser that is right, or wrong, on every image."""
    samples = dataset.splits["val"]
    found = []
    for sample, label in enumerate(samples.labels):
        there = samples.objects.of(sample)
        box = there.box[there.label == label][:1] * (1 if right else 0)
        found.append(ImageFound(box=box, score=np.array([0.9]), label=np.array([label])))
    return Results(split="val", found=found)


def keep(workspace, dataset, version, results):
    """Put results in the place of a version's boxes."""
    tags = version.tags
    path = results_path(workspace, dataset.fingerprint, "val", tags["protocol"], tags["weights_sha256"])
    results.write(dataset, path)
    ResultsFacts(
        weights_sha256=tags["weights_sha256"], dataset_fingerprint=dataset.fingerprint, split="val",
        protocol=tags["protocol"], seconds=1.0,
    ).keep(path)  # fmt: skip


def test_boxes_are_kept_and_read_again(space):
    run = trained(space).run
    first, again = (localise(space, run.name, "d") for _ in range(2))
    assert first == again and first.test == "boxes-dense-32-40"
    path = Path(first.results)
    time, content = path.stat().st_mtime_ns, path.read_bytes()
    localise(space, run.name, "d")
    assert path.stat().st_mtime_ns == time, "read, not computed"
    path.write_text("[]")
    assert localise(space, run.name, "d") == first and path.read_bytes() == content
    predicted = localise(space, run.name, "d", classifier=CLASSIFIER)
    assert predicted.results != first.results
    assert all(len(each) == 2 for each in read_results(Path(predicted.results), open_dataset(space, "d"), "val").found)
    assert predicted.error <= first.error, "of two classes a classifier names both"


@pytest.mark.parametrize("stages", [1, 2])
def test_a_test_that_is_stopped_goes_on_to_the_same_bytes(space, monkeypatch, stages):
    """Of a localiser, and with the R-CNN on its boxes; images that were done are not looked at again."""
    first, second = pair(space)
    rcnns, splits = [second.run.name][: stages - 1], []

    def stopped_after(parts):
        def find(giver, classes, protocol, sides, dataset, *others):
            if len(splits) == parts:
                raise KeyboardInterrupt
            splits.append(dataset.splits["val"].keys)
            return find_by_classes(giver, classes, protocol, sides, dataset, *others)

        monkeypatch.setattr(localiser_boxes, "find_by_classes", find)

    def test():
        return localise(space, first.run.name, "d", rcnns=rcnns, classifier=CLASSIFIER)

    monkeypatch.setattr(search, "PART_IMAGES", 5)  # one micro-batch of four
    whole = test()
    path = Path(whole.results)
    content = path.read_bytes()
    path.unlink()
    stopped_after(1)
    with pytest.raises(KeyboardInterrupt):
        test()
    assert len(list(path.with_suffix(".parts").iterdir())) == 2 and not path.exists()
    stopped_after(2)
    assert test() == whole and path.read_bytes() == content
    assert [len(keys) for keys in splits] == [4, 4] and not set(splits[0]) & set(splits[1])
    assert not path.with_suffix(".parts").exists()


def test_an_r_cnn_is_registered_with_its_localiser_gated_and_served(space, tmp_path, monkeypatch, capsys):
    dataset, tracking = open_dataset(space, "d"), Tracking(space)
    first, second = pair(space)
    test = localise(space, first.run.name, "d", rcnns=[second.run.name])
    version = resolve(tracking, register_trained(space, second).uri)
    assert version.name == "ilsvrc-loc-rcnn-resnet101" and version.tags["task"] == "localisation"
    assert version.tags["weights_sha256"] == second.result.weights_sha256
    assert float(version.tags["dense_localisation_error"]) == pytest.approx(test.error, abs=1e-3)
    card = fetch_card(tracking, version)
    assert f"| dense | truth | 8 val | {test.error:.2f}" in card and first.result.weights_sha256 in card
    # the pair is tested, promoted and served by that name alone
    again = localise(space, version.name, "d")
    assert (again.error, again.results, again.test) == (test.error, test.results, test.test)
    assert again.test == "boxes-dense-32-40-20-regions-24"
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(space.root))
    run(monkeypatch, "localise", version.uri, "--dataset", "d")
    assert ", by R-CNN" in capsys.readouterr().out
    with pytest.raises(UserError, match="leave out --protocol center"):
        localise(space, version.uri, "d", protocol="center")
    run(monkeypatch, "promote", version.name)
    assert f"first champion, localisation error {test.error:.2f} % on 8 images" in capsys.readouterr().out
    # against a localiser alone, under one name
    other = resolve(tracking, register_trained(space, trained(space, seed=1), name="both").uri)
    both = resolve(tracking, register_trained(space, second, name="both").uri)
    keep(space, dataset, other, boxes(dataset, right=False))
    promote_by_results(space, other.uri)
    keep(space, dataset, both, boxes(dataset, right=True))
    assert "0.00 % against 100.00 % of version 1 on the same 8 images" in promote_by_results(space, both.uri).reason
    Path(test.results).unlink()
    test = localise(space, first.run.name, "d", rcnns=[second.run.name])
    # a JPEG in, a box for each class out, the same as in the result file
    data = dataset.splits["val"].encoded(0).tobytes()
    kept = read_results(Path(test.results), dataset, "val").found[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.address)
    served = load_model(version.uri)
    names = [dataset.classes[label] for label in kept.label]
    (own,) = served.predict(pd.DataFrame({"image": [data], "classes": [names]})).to_dict("records")
    np.testing.assert_allclose(own["boxes"], kept.box, atol=1e-3)
    np.testing.assert_allclose(own["scores"], kept.score, atol=1e-5)
    (tmp_path / "a.jpg").write_bytes(data)
    run(monkeypatch, "predict", version.name, tmp_path / "a.jpg", "--output", tmp_path / "out.csv", "--class", names[0])
    (row,) = pyarrow.csv.read_csv(tmp_path / "out.csv").to_pylist()
    assert row["right"] == pytest.approx(kept.box[0, 2], abs=1e-3)


def test_an_r_cnn_whose_localiser_is_elsewhere_is_not_registered(space, caplog):
    first, second = pair(space)
    folder = first.run.path.rename(space.root / "elsewhere")
    try:
        assert register_trained(space, second, name="alone") is None
        assert "name it with --proposals" in caplog.text
        assert register_trained(space, second, name="alone", proposals=str(folder)).new
    finally:
        folder.rename(first.run.path)


def test_a_localiser_is_registered_gated_and_served(space, tmp_path, monkeypatch, capsys):
    dataset, tracking = open_dataset(space, "d"), Tracking(space)
    one, two = trained(space), trained(space, seed=1)
    tests = [localise(space, str(one.run.path), "d", protocol=protocol) for protocol in ("center", "dense")]
    tests.append(localise(space, str(one.run.path), "d", classifier=CLASSIFIER))
    version = register_localiser(space, one, tests, classifier=CLASSIFIER)
    assert not register_localiser(space, one, tests, classifier=CLASSIFIER).new
    first, second = resolve(tracking, version.uri), resolve(tracking, register_trained(space, two).uri)
    assert (first.name, first.version, second.version) == (NAME, "1", "2")
    assert first.tags["task"] == "localisation" and first.tags["protocol"] == "boxes-dense-32-40"
    assert float(first.tags["dense_localisation_error"]) == pytest.approx(tests[1].error, abs=1e-3)
    assert float(first.tags["dense_predicted_localisation_error_interval"].split(" to ")[0]) == pytest.approx(
        tests[2].interval[0], abs=1e-3
    )
    assert first.tags["classifier"] == f"models:/{CLASSIFIER}/1" and "classifier" not in second.tags
    card = fetch_card(tracking, first)
    assert "## Localisation error" in card and "| center | truth | 8 val |" in card and "named to it" in card
    assert (one.run.path / "pictures" / "boxes-dense-32-40.png").stat().st_size > 1_000
    assert named_task(space, NAME) == named_task(space, str(one.run.path)) == "localisation"
    # it is tested as a run is
    assert localise(space, first.uri, "d").error == tests[1].error
    # the gate
    keep(space, dataset, first, boxes(dataset, right=False))
    assert "first champion, localisation error 100.00 % on 8 images" in promote_by_results(space, first.uri).reason
    keep(space, dataset, second, boxes(dataset, right=False))
    with pytest.raises(PromotionRefusedError, match=r"100.00 % against 100.00 % of version 1 on the same 8 images"):
        promote_by_results(space, second.uri)
    keep(space, dataset, second, boxes(dataset, right=True))
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(space.root))
    run(monkeypatch, "promote", f"{NAME}@candidate")
    assert "is the champion now: localisation error 0.00 % against 100.00 %" in capsys.readouterr().out
    assert alias_of(tracking, NAME, CHAMPION).version == "2"
    # serving: a JPEG in, a box for each class out, the same as in a result file
    data = dataset.splits["val"].encoded(0).tobytes()
    kept = read_results(Path(tests[2].results), dataset, "val").found[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.address)
    served = load_model(f"models:/{NAME}/1")
    (own,) = served.predict(pd.DataFrame({"image": [data]})).to_dict("records")
    assert own["labels"] == [dataset.classes[label] for label in kept.label]
    np.testing.assert_allclose(own["boxes"], kept.box, atol=1e-3)
    np.testing.assert_allclose(own["scores"], kept.score, atol=1e-5)
    asked = pd.DataFrame({"image": [base64.b64encode(data).decode()] * 2, "classes": [[dataset.classes[1]], None]})
    named, likeliest = served.predict(asked).to_dict("records")
    place = kept.label.tolist().index(1)
    assert named["labels"] == [dataset.classes[1]] and likeliest["labels"] == own["labels"]
    np.testing.assert_allclose(likeliest["boxes"], own["boxes"], atol=1e-3)
    np.testing.assert_allclose(named["boxes"][0], kept.box[place], atol=1e-3)
    assert len(served.predict(pd.DataFrame({"image": [data]}), params={"top": 1})["boxes"][0]) == 1
    client = TestClient(scoring_server.init(served))
    text = asked["image"][0]
    rows = [{"image": text, "classes": [dataset.classes[1]]}, {"image": text, "classes": None}]
    for sent, labels in ((rows, [named["labels"], own["labels"]]), ([{"image": text}], [own["labels"]])):
        answer = client.post("/invocations", json={"dataframe_records": sent})
        assert answer.status_code == 200, answer.text
        assert [row["labels"] for row in answer.json()["predictions"]] == labels
    wrong = client.post("/invocations", json={"dataframe_records": [{"image": text, "classes": ["dog"]}]})
    assert wrong.status_code == 400 and "'dog' is no class of the localiser" in wrong.text
    with pytest.raises(MlflowException, match=r"'n00000003' is no class of the localiser; did you mean 'n0000000"):
        served.predict(pd.DataFrame({"image": [data], "classes": [["n00000003"]]}))
    alone = load_model(f"models:/{NAME}/2")
    with pytest.raises(MlflowException, match="no class of image 1 is named, and there is no classifier"):
        alone.predict(pd.DataFrame({"image": [data]}))
    # predictions of a folder, by its own classifier, by another, and of named classes
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(data)
    (tmp_path / "images" / "b.jpg").write_text("no image")
    out = tmp_path / "out.csv"
    found = predict_objects(space, first.uri, tmp_path / "images", out, pictures=tmp_path / "drawn")
    assert found.images == 1 and [path.name for path in (tmp_path / "drawn").iterdir()] == ["a.jpg.png"]
    rows = pyarrow.csv.read_csv(out).to_pylist()
    assert [row["label"] for row in rows] == [*own["labels"], ""] and rows[-1]["error"]
    assert rows[0]["left"] == pytest.approx(kept.box[0, 0], abs=1e-3)
    run(monkeypatch, "predict", NAME, tmp_path / "images", "--output", out, "--class", dataset.classes[1])
    assert [row["label"] for row in pyarrow.csv.read_csv(out).to_pylist()] == [dataset.classes[1], ""]
    run(monkeypatch, "predict", NAME, tmp_path / "images", "--output", out, "--classes", CLASSIFIER)
    assert [row["label"] for row in pyarrow.csv.read_csv(out).to_pylist()][:2] == own["labels"]
    with pytest.raises(UserError, match="no class of image 1 is named"):
        predict_objects(space, NAME, tmp_path / "images", out)


def run(monkeypatch, *words):
    """Run a command to its good end."""
    monkeypatch.setattr("sys.argv", ["resnet-pipeline", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, words


def test_the_flow_ends_with_a_gated_version_and_a_picture(space, monkeypatch):
    from flows import artifacts, boxes, gpus, localisation
    from flows import train as training

    shown = []
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(space.root))
    for module, names in (
        (localisation, ("localise", "register", "draw")), (boxes, ("gate",)), (training, ("train",)),
    ):  # fmt: skip
        for name in names:  # without Prefect, which would start a server here
            monkeypatch.setattr(module, name, getattr(module, name).fn)
    monkeypatch.setattr(gpus, "_limit", lambda: 0)
    monkeypatch.setattr(localisation, "table", lambda key, rows, description: shown.append(rows))
    monkeypatch.setattr(boxes, "create_markdown_artifact", lambda **given: shown.append(given))
    monkeypatch.setattr(artifacts.Links, "show", lambda self, places: shown.append(places))
    result = localisation.localization_train.fn(
        dataset="d", steps=2, launcher="local", seed=5, overrides=WIDE, classes=CLASSIFIER, registered_as="flow-loc"
    )
    assert result["version"] == "flow-loc version 1 @candidate" and result["promoted"], result["promotion"]
    assert [(each["protocol"], each["classes"]) for each in result["localisation"]] == [
        ("center", "truth"), ("dense", "truth"), ("dense", CLASSIFIER),
    ]  # fmt: skip
    assert any("data:image/jpeg;base64," in given.get("markdown", "") for given in shown if isinstance(given, dict))
    assert Path(result["pictures"]).is_file() and alias_of(Tracking(space), "flow-loc", CHAMPION).version == "1"
    assert resolve(Tracking(space), "models:/flow-loc/1").tags["classifier"] == f"models:/{CLASSIFIER}/1"
    changed = {name: value for name, value in WIDE.items() if not name.startswith(("localisation", "augment"))}
    second = localisation.localization_train.fn(
        dataset="d", network="rcnn-resnet101", proposals=Path(result["run"]).name, steps=2, launcher="local", seed=5,
        overrides={**changed, "augment.crop": 24, "regions.norm": "batch", "regions.proposals": 20},
        registered_as="flow-rcnn",
    )  # fmt: skip
    assert second["version"] == "flow-rcnn version 1 @candidate" and second["promoted"], second["promotion"]
    assert [(each["protocol"], each["classes"]) for each in second["localisation"]] == [("dense", "truth")]
    assert Path(second["pictures"]).is_file()
