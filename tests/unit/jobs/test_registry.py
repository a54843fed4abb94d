"""Registering, promoting, serving in process and predicting, on a real MLflow in a SQLite file."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shlex
import shutil
import sys

import numpy as np
import pandas as pd
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.exceptions import MlflowException
from safetensors.torch import save_file

from resnet_pipeline import cli
from resnet_pipeline.adapters.mlflow.client import TrackingAwayError
from resnet_pipeline.adapters.mlflow.ensembles import ENSEMBLE_FILE
from resnet_pipeline.adapters.mlflow.registry import fetch_card, fetched_model, resolve, trained_by
from resnet_pipeline.adapters.mlflow.runs import Delivery, Tracking
from resnet_pipeline.adapters.mlflow_model import _load_pyfunc
from resnet_pipeline.cli.evaluation import ensemble
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.ensemble import average, interval_errors
from resnet_pipeline.evaluation.paper import ENSEMBLES, EnsembleMember
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.scores import read_scores, write_scores
from resnet_pipeline.evaluation.trained_model import load_folder
from resnet_pipeline.jobs.analyse import evaluations_of, score_sources
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.jobs.explore import explore
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.predict import predict_folder
from resnet_pipeline.jobs.promote import PromotionRefusedError, promote
from resnet_pipeline.jobs.references import load, parse
from resnet_pipeline.jobs.register import check_network_name, register_ensemble_of, register_run
from resnet_pipeline.jobs.report import report_on_runs, report_on_training
from resnet_pipeline.jobs.train import TrainedRun, run_config, train_run
from resnet_pipeline.models import build_model
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace
from tests.images import jpeg
from tests.json_keys import check_keys
from tests.workspaces import with_database, with_digits

pytestmark = pytest.mark.slow
NAME = "digits-resnet8"
TEST = TestSpec(dataset="digits", protocol="center")


def evaluations(workspace, *references, protocol="center", **options):
    return evaluate_models(workspace, references, TestSpec(dataset="digits", protocol=protocol, **options))


@pytest.fixture(scope="module")
def registered(tmp_path_factory, digits, mlflow_database):
    """Return a workspace with three short runs: version 1 poor, versions 2 and 3 better, all tested by centre crops."""
    workspace = with_database(with_digits(tmp_path_factory.mktemp("registry") / "work", digits), mlflow_database)
    facts = dataclasses.replace(digits.facts, class_words={"3": "three, a digit"})
    runs = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would wait for each other on networks as small as these
    for seed, steps in ((0, 4), (1, 50), (2, 50)):
        config = with_overrides(get_recipe("digits/resnet8"), {"seed": seed, "steps": steps, "bn_images": 256})
        run = RunDirectory.create(workspace.runs, config, facts)
        train(run, digits, LocalContext())
        trained = TrainedRun(run=run, result=run.result(), mlflow_run="", mlflow_page="", reused=False)
        version = register_run(workspace, trained, evaluations(workspace, str(run.path)))
        assert version.new and version.version == str(seed + 1)
        runs.append(trained)
    torch.set_num_threads(threads)
    return workspace, runs


@pytest.fixture
def pyfunc(registered):
    import mlflow

    Tracking(registered[0]).client  # noqa: B018 - sets MLflow's own address
    return mlflow.pyfunc.load_model


def test_a_version_carries_its_lineage(registered, digits):
    workspace, runs = registered
    tracking = Tracking(workspace)
    version = resolve(tracking, f"models:/{NAME}@candidate")
    assert version.version == "3"
    tags, scores = version.tags, evaluations(workspace, f"models:/{NAME}/3")[0]
    assert tags["dataset_fingerprint"] == digits.fingerprint
    assert tags["recipe"] == "digits/resnet8" and tags["weights_sha256"] == runs[2].result.weights_sha256
    assert float(tags["center-16-of-18_top1_error"]) == pytest.approx(scores.errors.top1, abs=1e-3)
    low, high = map(float, tags["center-16-of-18_top1_interval"].split(" to "))
    assert low < scores.errors.top1 < high
    import mlflow

    linked = mlflow.artifacts.download_artifacts(tags["center-16-of-18_scores"])
    np.testing.assert_array_equal(read_scores(linked).probabilities, scores.scores.probabilities)
    stored = tracking.client.get_model_version(NAME, "3")
    assert stored.description == fetch_card(tracking, version)
    assert f"| center-16-of-18 | 364 val | {scores.errors.top1:.2f} |" in stored.description
    model = mlflow.models.get_model_info(version.uri)
    assert [c.name for c in model.signature.inputs] == ["image"]
    assert model.saved_input_example_info["type"] == "dataframe"


def test_json_of_training_keeps_its_keys(registered, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(registered[0].root))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["resnet-pipeline", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    check_keys("train", run, tmp_path / "keys.json")


def test_registering_again_adds_what_is_new_and_no_version(registered):
    workspace, runs = registered
    again = register_run(workspace, runs[2], evaluations(workspace, str(runs[2].run.path), protocol="10-crop"))
    assert (again.new, again.version) == (False, "3")
    tags = resolve(Tracking(workspace), again.uri).tags
    card = fetch_card(Tracking(workspace), again)
    for protocol in ("center-16-of-18", "10-crop-16-of-18"):
        assert f"{protocol}_top5_interval" in tags and f"{protocol}_scores" in tags and f"| {protocol} |" in card
    # a test on fewer images does not take the place of one on all
    register_run(workspace, runs[2], evaluations(workspace, str(runs[2].run.path), images=20))
    assert resolve(Tracking(workspace), again.uri).tags["center-16-of-18_images"] == "364"


def test_the_gate(registered):
    workspace, _ = registered
    with pytest.raises(PromotionRefusedError, match=r"no 10-crop scores; make them: resnet-pipeline evaluate models:/"):
        promote(workspace, f"models:/{NAME}/1", "10-crop")
    first = promote(workspace, f"models:/{NAME}/1", "center")
    assert first.before is None and "mlflow models serve -m models:/digits-resnet8@champion" in first.serve
    better = promote(workspace, f"models:/{NAME}/2", "center")
    assert better.before.version == "1" and better.comparison.low > 0
    champion = resolve(Tracking(workspace), f"models:/{NAME}@champion")
    assert champion.version == "2" and "better by" in champion.tags["promoted"]
    with pytest.raises(PromotionRefusedError, match=r"worse by .* better by more than chance") as refused:
        promote(workspace, f"models:/{NAME}/1", "center")
    assert re.search(r"worse by \d", str(refused.value)) and "\n" not in str(refused.value)
    assert promote(workspace, f"models:/{NAME}/2", "center").reason == "champion already"
    assert resolve(Tracking(workspace), f"models:/{NAME}@champion").version == "2"


def test_the_gate_takes_scores_from_the_registry_if_there_are_none_here(registered, monkeypatch, tmp_path):
    workspace, _ = registered
    monkeypatch.setattr(Workspace, "scores", tmp_path)
    with pytest.raises(PromotionRefusedError, match="better by more than chance"):
        promote(workspace, f"models:/{NAME}/1", "center")


def test_the_gate_refuses_half_a_split_and_other_data(registered, monkeypatch, tmp_path):
    workspace, _ = registered
    (kept,) = evaluations(workspace, f"models:/{NAME}/3")
    monkeypatch.setattr(Workspace, "scores", tmp_path)
    half = dataclasses.replace(
        kept.scores,
        keys=kept.scores.keys[:9],
        labels=kept.scores.labels[:9],
        probabilities=kept.scores.probabilities[:9],
    )
    write_scores(half, tmp_path / kept.path.relative_to(workspace.root / "scores"))
    client = Tracking(workspace).client
    client.set_model_version_tag(NAME, "3", "dataset_fingerprint", "e" * 64)
    try:
        with pytest.raises(PromotionRefusedError, match=r"version 3 is of dataset digits \(eeeeeeeeeeee\)"):
            promote(workspace, NAME, "center")
    finally:
        client.set_model_version_tag(NAME, "3", "dataset_fingerprint", kept.scores.dataset_fingerprint)
    with pytest.raises(PromotionRefusedError, match="are of 9 of the split's 364 images"):
        promote(workspace, NAME, "center")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (f"models:/{NAME}@nope", r"no alias 'nope'; its aliases: @candidate \(version 3\)"),
        (f"models:/{NAME}/17", "no version 17; its versions: 1, 2, 3"),
        ("models:/digits-resnet9@candidate", "no registered model 'digits-resnet9'.*did you mean 'digits-resnet8'"),
        ("models:/x'y@z", "is no model reference"),
    ],
)
def test_references_that_point_nowhere(registered, reference, said):
    for use in (
        lambda: resolve(Tracking(registered[0]), reference),
        lambda: fetched_model(Tracking(registered[0]), reference).__enter__(),
    ):
        with pytest.raises(UserError, match=said) as error:
            use()
        assert "\n" not in str(error.value)


def test_two_workspaces_of_one_process_have_a_store_each(tmp_path, mlflow_database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stores = [Tracking(with_database(Workspace(tmp_path / name), mlflow_database)) for name in "ab"]
    ids = [store.client.create_experiment("mine") for store in stores]  # a name that is there would be refused
    again = Tracking(with_database(Workspace(tmp_path / "c"), mlflow_database))
    assert len(ids) == 2 and "MLFLOW_TRACKING_URI" not in os.environ
    assert again.uri.endswith("c/mlflow/mlflow.db") and again.client.get_experiment_by_name("mine") is None


def test_mlflow_away_is_one_line(registered, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingAwayError, match=r"^MLflow at http://127.0.0.1:9 does not answer; [^\n]*$"):
        promote(registered[0], NAME, "center")


def test_a_served_model_answers_bytes_base64_and_paths_as_evaluate_does(
    registered, pyfunc, digits, tmp_path, monkeypatch
):
    workspace, _ = registered
    kept = evaluations(workspace, f"models:/{NAME}/2")[0].scores
    split = digits.splits["val"]
    files = [split.encoded(split.keys.index(key)).tobytes() for key in kept.keys[:6]]
    model = pyfunc(f"models:/{NAME}/2")
    found = model.predict(pd.DataFrame({"image": files}))
    for row, expected in zip(found.itertuples(), kept.probabilities[:6], strict=True):
        best = np.argsort(-expected, kind="stable")[:5]
        assert row.labels == [digits.classes[k] for k in best]
        np.testing.assert_allclose(row.probabilities, expected[best], atol=1e-5)
        assert all(
            w == ("three, a digit" if label == "3" else label) for w, label in zip(row.words, row.labels, strict=True)
        )
    (tmp_path / "a.jpg").write_bytes(files[0])
    text = base64.encodebytes(files[0]).decode()
    alone = model.predict(pd.DataFrame({"image": files[:1]})).probabilities[0]  # in a batch of six its last bits differ
    for same in (text, text.encode().replace(b"\n", b""), str(tmp_path / "a.jpg")):
        assert model.predict(pd.DataFrame({"image": [same]})).probabilities[0] == alone
    ten = model.predict(pd.DataFrame({"image": files[:1]}), params={"top": 10, "protocol": "10-crop"})
    assert sorted(ten.labels[0]) == digits.classes and sum(ten.probabilities[0]) == pytest.approx(1, abs=1e-4)
    from mlflow.exceptions import MlflowException

    for value, said in (
        (b"hello", "image 2 can't be decoded: no image format"),
        (jpeg(40, 40)[:300], "image 2 can't be decoded"),
        ("no/such.jpg", "no file of that name either"),
        (None, "image 2 is of type NoneType"),
        (str(tmp_path), "Is a directory"),
    ):
        with pytest.raises(MlflowException, match=said) as error:
            model.predict(pd.DataFrame({"image": [files[0], value]}))
        assert error.value.get_http_status_code() == 400
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    with pytest.raises(MlflowException, match="a server reads no paths"):
        model.predict(pd.DataFrame({"image": [str(tmp_path / "a.jpg")]}))


def test_an_ensemble_by_name_takes_versions_by_recipe_and_seed_and_its_card_names_partial_ones(
    registered, digits, monkeypatch
):
    workspace, _ = registered
    tracking, members = Tracking(workspace), [EnsembleMember("digits/resnet8", seed) for seed in (2, 0)]
    monkeypatch.setitem(ENSEMBLES, "two-seeds", tuple(members))
    test = TestSpec(dataset="digits", protocol="center")
    with pytest.raises(UserError, match=rf"seed 2 has only models:/{NAME}/3, of 50 of 240 steps; .*/1, of 4 of 240"):
        score_sources(workspace, ["two-seeds"], test)
    sources = score_sources(workspace, ["two-seeds"], dataclasses.replace(test, allow_partial=True))
    assert [source.name for source in sources] == [f"models:/{NAME}/3", f"models:/{NAME}/1"]
    version = register_ensemble_of(workspace, "two-seeds", evaluations_of(sources), TEST)
    card = fetch_card(tracking, version)
    assert f"models:/{NAME}/3 was trained for 50 of 240 steps." in card and f"{NAME}/1 was trained for 4 of 240" in card
    # versions of before have no such tags: their runs know
    (newest, *_) = trained_by(tracking, "digits/resnet8")
    for tag in ("steps", "seed"):
        tracking.client.delete_model_version_tag(NAME, newest.version.version, tag)
    run = RunDirectory(workspace.runs / newest.version.tags["run"])
    tracking.describe(run, {"steps": 50, "seed": 2}, {}, digits)
    assert [(t.version.version, t.steps, t.seed) for t in trained_by(tracking, "digits/resnet8")] == [
        ("3", 50, 2), ("2", 50, 1), ("1", 4, 0),
    ]  # fmt: skip


def test_an_ensemble_is_registered_by_reference_and_answers_with_the_mean(
    registered, pyfunc, digits, tmp_path, score_files
):
    workspace, runs = registered
    members = [f"models:/{NAME}/2", str(runs[2].run.path)]
    tested = evaluations(workspace, *members)
    version = register_ensemble_of(workspace, "digits-two", tested, TEST)
    ten = evaluations(workspace, *members, protocol="10-crop")
    again = register_ensemble_of(workspace, "digits-two", ten, TEST)
    assert version.new and (again.new, again.uri) == (False, version.uri)
    with pytest.raises(UserError, match="'digits-two' is the name of ensembles, and this is a network"):
        register_run(workspace, runs[2], name="digits-two")
    tags = resolve(Tracking(workspace), version.uri).tags
    assert tags["members"] == f"models:/{NAME}/2, models:/{NAME}/3"
    # its run has a child for each member, once, with that member's own errors; the trainings stay where they were
    client, run_id = Tracking(workspace).client, version.run_id
    found = client.search_runs([client.get_run(run_id).info.experiment_id])
    found = [r for r in found if r.data.tags.get("mlflow.parentRunId") == run_id]
    children = {r.data.tags["member"]: r for r in found}
    for protocol, tests in (("center", tested), ("10-crop", ten)):
        for member, e in zip((f"models:/{NAME}/2", f"models:/{NAME}/3"), tests, strict=True):
            named = f"test/{protocol}-16-of-18/top1_error"
            assert children[member].data.metrics[named] == e.errors.top1
            assert len(client.get_metric_history(children[member].info.run_id, named)) == 1
    assert len(found) == len(children) == 2
    assert {r.info.status for r in children.values()} == {"FINISHED"}
    (given,) = client.get_run(run_id).inputs.dataset_inputs
    assert (given.dataset.digest, given.tags[0].value) == (digits.fingerprint[:36], "testing")
    mean = average([e.scores for e in tested])
    assert float(tags["center-16-of-18_top1_error"]) == pytest.approx(
        100 * float((mean.probabilities.argmax(1) != mean.labels).mean()), abs=1e-3
    )
    import mlflow

    folder = mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path))
    sizes = sum(p.stat().st_size for p in (tmp_path / folder).rglob("*") if p.is_file())
    assert sizes < 60_000, "no weights are copied"
    split = digits.splits["val"]
    files = [split.encoded(split.keys.index(key)).tobytes() for key in mean.keys[:4]]
    found = pyfunc(version.uri).predict(pd.DataFrame({"image": files}))
    np.testing.assert_allclose(
        np.stack(found.probabilities), -np.sort(-mean.probabilities[:4], axis=1)[:, :5], atol=1e-5
    )
    with pytest.raises(UserError, match=f"is an ensemble; name its members instead: models:/{NAME}/2 models:/{NAME}/3"):
        evaluations(workspace, version.uri)
    # it passes the gate like any network
    assert promote(workspace, "digits-two", "center").before is None
    test = TEST
    page = explore(workspace, [version.uri], test, output=tmp_path / "e.html")
    assert "an ensemble of 2" in page.read_text()
    for kept in score_files:
        kept.clear()
    ensemble(members, "digits", "center", workspace.root, registered_as="digits-two")
    read, written = score_files
    assert (len(set(read)), len(read), len(written)) == (2, 2, 1), "the members' are read once, the ensemble's written"


@pytest.fixture
def damaged(registered, tmp_path):
    """Return a workspace with a finished run whose weights lost the lowest bits of 4 kB, and the run."""
    workspace, runs = registered
    space = Workspace(tmp_path / "work")
    shutil.copytree(runs[0].run.path, space.runs / runs[0].run.name)
    space.datasets.symlink_to(workspace.datasets)
    run = RunDirectory(space.runs / runs[0].run.name)
    content = bytearray(run.weights_file.read_bytes())
    content[-8192:-4096] = bytes(byte ^ 1 for byte in content[-8192:-4096])
    run.weights_file.write_bytes(content)
    return space, run


def test_a_training_s_report_is_in_its_run_and_the_dataset_s_page_is_written_anew(registered, caplog):
    workspace, runs = registered
    trained = runs[1]
    tested = evaluations(workspace, str(trained.run.path))
    scores = {file: file.stat().st_mtime_ns for file in workspace.scores.rglob("*.parquet")}
    broken = workspace.runs / "broken"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    try:
        page = report_on_training(workspace, trained, [TEST], tested)
    finally:
        shutil.rmtree(broken)
    assert page == trained.run.path / "report.html"
    text, interval = page.read_text(), interval_errors(tested[0].scores).top1_interval
    assert "<h1>digits/resnet8 on digits</h1>" in text and "{:.2f} to {:.2f}".format(*interval) in text
    tracking = Tracking(workspace)
    assert [f.path for f in tracking.client.list_artifacts(tracking.run_id(trained.run), "report")] == [
        "report/report.html"
    ]
    whole = (workspace.reports / "digits.html").read_text()
    assert all(run.run.name in whole for run in runs) and "the report leaves it out" in caplog.text
    assert {file: file.stat().st_mtime_ns for file in workspace.scores.rglob("*.parquet")} == scores, "none tested"
    (workspace.reports / "digits.html").unlink()
    few = TestSpec(dataset="digits", protocol="center", images=9)
    text = report_on_training(workspace, trained, [few], evaluate_models(workspace, [str(trained.run.path)], few))
    assert "9 of 364 images" in text.read_text() and not (workspace.reports / "digits.html").exists()


def test_the_report_s_commands_repeat_its_runs(registered, digits, tmp_path, monkeypatch):
    """Two runs of one recipe, which differ by steps, seed and fields, are trained again from the page's commands."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", Tracking(registered[0]).uri)  # else databases are made
    first, second = (Workspace(tmp_path / name) for name in ("first", "second"))
    for space in (first, second):
        space.datasets.mkdir(parents=True)
        (space.datasets / "digits").symlink_to(digits.path)
    fields = {"optim.lr": 0.05, "schedule.kind": "step", "augment.shorter_side": [17, 19], "bn_images": 64}
    for seed, changes in ((7, fields), (8, {"bn_images": 64})):
        config = run_config("digits/resnet8", changes, steps=3, seed=seed)
        train_run(first, config, "digits", Launch(launcher="local"))
    _, data = report_on_runs(first, "digits", runs=None, protocols=["center"])
    names = {m.name.split()[1]: m.name for m in data.members}
    assert "optim.lr=0.05" in names["seed=7"] and "optim.lr=0.1" in names["seed=8"]

    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(second.root))
    for _, command in data.commands:
        words = shlex.split(command)
        more = ["--launcher", "local"] if words[1] == "train" else []  # Ray's workers take longer, for the same bits
        monkeypatch.setattr(sys, "argv", [*words, *more])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert not done.value.code, command
    runs = [sorted(RunDirectory(p).result().weights_sha256 for p in s.runs.iterdir()) for s in (first, second)]
    assert runs[0] == runs[1] and sorted(p.name for p in first.runs.iterdir()) == [
        p.name for p in sorted(second.runs.iterdir())
    ]
    tags = Tracking(second).client.get_run(Delivery.of(RunDirectory(min(second.runs.iterdir()))).run_id).data.tags
    assert tags["changes"].startswith("steps=3 seed=")
    assert (second.reports / "digits.html").is_file()


def test_a_run_with_damaged_weights_is_refused_by_name_everywhere(damaged):
    space, run = damaged
    trained = TrainedRun(run=run, result=run.result(), mlflow_run="", mlflow_page="", reused=True)
    for use in (
        lambda: register_run(space, trained),
        lambda: train_run(space, run.config(), "digits", Launch(launcher="local")),
        lambda: evaluations(space, str(run.path)),
        lambda: load_folder(run.path),
        lambda: _load_pyfunc(str(run.path)),
    ):
        with pytest.raises((UserError, MlflowException), match=r"weights\.safetensors is damaged"):
            use()
    assert not (space.root / "mlflow").exists(), "nothing was registered"


def test_other_weights_than_the_result_names_are_refused(damaged, registered):
    space, run = damaged
    run.weights_file.write_bytes(registered[1][1].run.weights_file.read_bytes())
    with pytest.raises(UserError, match=r"weights\.safetensors does not hold the weights that result\.json names"):
        load_folder(run.path)
    with pytest.raises(UserError, match=r"holds other weights .* or remove .*result\.json and train"):
        train_run(space, run.config(), "digits", Launch(launcher="local"))


def test_other_weights_than_the_version_names_are_refused(registered):
    workspace, _ = registered
    tracking = Tracking(workspace)
    version = resolve(tracking, f"models:/{NAME}/1")
    tag = version.tags["weights_sha256"]
    tracking.client.set_model_version_tag(NAME, "1", "weights_sha256", "0" * 64)
    try:
        with pytest.raises(UserError, match=f"models:/{NAME}/1: .*weights.safetensors holds other weights"):
            load(workspace, parse(workspace, version.uri))
    finally:
        tracking.client.set_model_version_tag(NAME, "1", "weights_sha256", tag)


def test_an_ensemble_needs_registered_members_of_the_same_weights(registered, tmp_path):
    from resnet_pipeline.adapters.mlflow.ensembles import load_members

    workspace, runs = registered
    save_file(build_model("cifar-resnet20", num_classes=10).state_dict(), tmp_path / "w.safetensors")
    for name, member, said in (
        ("x", f"cifar-resnet20={tmp_path / 'w.safetensors'}", "is not registered, and an ensemble refers"),
        ("a/b", str(runs[0].run.path), "model name"),
        (NAME, str(runs[0].run.path), f"'{NAME}' is the name of networks, and this is an ensemble"),
    ):
        with pytest.raises(UserError, match=said):
            register_ensemble_of(workspace, name, evaluations(workspace, member), TEST)
    (tmp_path / ENSEMBLE_FILE).write_text(
        json.dumps({"members": [{"uri": "models:/a/1", "recipe": "r", "weights_sha256": "0" * 64}]})
    )
    from contextlib import nullcontext

    with pytest.raises(UserError, match="models:/a/1 has other weights"):
        load_members(tmp_path, lambda uri: nullcontext(runs[0].run.path))


def test_a_folder_is_predicted_and_what_is_broken_is_listed(registered, digits, tmp_path):
    workspace, runs = registered
    kept = evaluations(workspace, str(runs[1].run.path))[0].scores
    folder, split = tmp_path / "in", digits.splits["val"]
    (folder / "sub").mkdir(parents=True)
    for number, key in enumerate(kept.keys[:5]):
        (folder / "sub" / f"{number}.jpg").write_bytes(split.encoded(split.keys.index(key)).tobytes())
    (folder / "a.txt").write_text("no image")
    (folder / "b.jpg").symlink_to("nowhere")
    (folder / ".hidden").write_text("not looked at")
    for ending in ("csv", "parquet", "json"):
        output = tmp_path / f"out.{ending}"
        done = predict_folder(workspace, str(runs[1].run.path), folder, output, top=2)
        assert done.images == 5 and [name for name, _ in done.broken] == ["a.txt", "b.jpg"]
        if ending == "json":
            rows = json.loads(output.read_text())
        else:
            rows = (pyarrow.csv.read_csv(output) if ending == "csv" else pq.read_table(output)).to_pylist()
        assert [row["file"] for row in rows] == [*(f"sub/{i}.jpg" for i in range(5)), "a.txt", "b.jpg"]
        for row, expected in zip(rows[:5], kept.probabilities, strict=False):
            assert str(row["label_1"]) == digits.classes[expected.argmax()] and not row["error"]
            assert row["probability_2"] == pytest.approx(float(np.sort(expected)[-2]), abs=1e-5)
        assert rows[5]["error"].startswith("no image format that is read here") and row["label_1"] is not None


@pytest.mark.parametrize(
    ("folder", "output", "said"),
    [
        ("missing", "o.csv", "missing does not exist"),
        ("empty", "o.csv", "holds no files"),
        ("text", "o.csv", "none of the 1 files of .* is an image; a.txt: no image format"),
        ("text", "o.xls", "must end in one of .csv"),
        ("good", "text/a.txt/o.csv", "can't be written"),
    ],
)
def test_what_can_t_be_predicted_is_one_line_and_leaves_nothing(registered, tmp_path, folder, output, said):
    workspace, runs = registered
    for name in ("empty", "text", "good"):
        (tmp_path / name).mkdir()
    (tmp_path / "text" / "a.txt").write_text("x")
    (tmp_path / "good" / "a.jpg").write_bytes(jpeg(30, 30))
    with pytest.raises(UserError, match=said) as error:
        predict_folder(workspace, str(runs[0].run.path), tmp_path / folder, tmp_path / output)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "good", "text"]


def test_weights_without_class_names_take_a_dataset_s(registered, tmp_path):
    workspace, _ = registered
    for classes in (10, 7):
        save_file(build_model("cifar-resnet20", num_classes=classes).state_dict(), tmp_path / f"w{classes}.safetensors")
    (tmp_path / "a.jpg").write_bytes(jpeg(60, 60))
    model, output = f"cifar-resnet20={tmp_path / 'w10.safetensors'}", tmp_path / "o.json"
    for name, label in ((None, r"\d"), ("digits", r"\d")):
        predict_folder(workspace, model, tmp_path / "a.jpg", output, dataset_name=name)
        (row,) = json.loads(output.read_text())
        assert row["file"] == "a.jpg" and re.fullmatch(label, row["label_1"])
    with pytest.raises(UserError, match="has 7 classes, dataset 'digits' has 10"):
        predict_folder(
            workspace, f"cifar-resnet20={tmp_path / 'w7.safetensors'}", tmp_path / "a.jpg", output,
            dataset_name="digits",
        )  # fmt: skip


def test_a_network_is_registered_under_the_name_that_is_given(registered):
    workspace, runs = registered
    version = register_run(workspace, runs[0], name="mine")
    assert (version.uri, version.new) == ("models:/mine/1", True)
    assert not register_run(workspace, runs[0], name="mine").new
    with pytest.raises(UserError, match="model name"):
        check_network_name("a/b", registered=True)
    with pytest.raises(UserError, match="--register mine and --no-register contradict each other"):
        check_network_name("mine", registered=False)
