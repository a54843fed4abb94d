"""The main job as a stranger runs it: one command in an empty folder."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.evaluation.ensemble import average, errors_of
from resnet_pipeline.evaluation.scores import read_scores
from resnet_pipeline.recipes import get_recipe
from tests.integration.conftest import BINARIES, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

IDS = ("center-16-of-18", "10-crop-16-of-18")
STEPS = get_recipe("digits/resnet20").steps


@pytest.fixture(scope="module")
def demo(tmp_path_factory, run_program):
    folder = tmp_path_factory.mktemp("elsewhere")
    done = run_program("resnet-pipeline", "demo", cwd=folder, timeout=900)
    assert done.returncode == 0, done.stdout
    return folder / "work", done.stdout


def test_it_shows_progress_and_ends_with_the_report(demo):
    root, out = demo
    lines = out.strip().splitlines()
    assert lines[-1] == f"Report: {root / 'reports' / 'digits.html'}"
    assert "mlflow server" in lines[-3] and "prefect server start" in lines[-2]
    page = (root / "reports" / "digits.html").read_text()
    assert "ensemble of 3" in page and "<svg" in page
    for depth in (8, 14, 20):
        assert re.search(rf"digits/resnet{depth} +\d+/{STEPS} steps ", out), "progress is visible"
    assert "Traceback" not in out and "Warning" not in out


def test_the_ensemble_s_error_is_small_and_comes_from_score_files(demo):
    root, out = demo
    dataset = Dataset.open(root / "datasets" / "digits")
    for protocol in IDS:
        files = sorted((root / "scores" / dataset.fingerprint[:12] / "val" / protocol).glob("*.parquet"))
        scores = [read_scores(f) for f in files]
        assert len(scores) == 3
        assert sorted(scores[0].keys) == sorted(dataset.splits["val"].keys)
        errors = errors_of(average(scores))
        assert errors.top1 <= 3
        np.testing.assert_allclose([s.probabilities.sum(1) for s in scores], 1, atol=1e-4)
        assert f"top-1 error {errors.top1:.2f} %" in out


def test_mlflow_has_runs_metrics_parameters_checkpoints_and_versions(demo, monkeypatch):
    from resnet_pipeline.adapters.mlflow.runs import Tracking
    from resnet_pipeline.workspace import Workspace

    root, out = demo
    client = Tracking(Workspace(root)).client
    (experiment,) = [e for e in client.search_experiments() if e.name == "digits (resnet-pipeline)"]
    assert f"/#/experiments/{experiment.experiment_id}?workflowType=machine_learning" in out
    runs = client.search_runs([experiment.experiment_id])
    assert {r.info.status for r in runs} == {"FINISHED"}
    with sqlite3.connect(root / "prefect" / "prefect.db") as database:
        flow_runs = [(str(UUID(i)), name) for i, name in database.execute("select id, name from flow_run")]
    database.close()
    (ensemble,) = [r for r in runs if "recipe" not in r.data.tags]
    runs.remove(ensemble)
    members = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == ensemble.info.run_id]
    assert {r.data.tags["recipe"] for r in members} == {f"digits/resnet{depth}" for depth in (8, 14, 20)}
    assert all({f"test/{p}/top1_error" for p in IDS} <= set(r.data.metrics) for r in (ensemble, *members))
    runs = [r for r in runs if r not in members]
    assert sorted(r.info.run_name for r in runs) == [f"resnet{depth} · seed 0 · digits" for depth in (14, 20, 8)]
    fingerprint = Dataset.open(root / "datasets" / "digits").fingerprint
    for run in runs:
        assert run.data.tags["dataset_fingerprint"] == fingerprint
        assert run.data.params["optim.lr"] == "0.1"
        assert run.data.tags["workers"] == "2"
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert [m.step for m in history] == list(range(10, STEPS + 1, 10))
        sections = {"val/top1_error", "train/pace/images_per_second", "train/optim/learning_rate"}
        assert sections | {f"test/{p}/top1_error" for p in IDS} <= set(run.data.metrics)
        (of_prefect,) = [f for f in flow_runs if f[0] == run.data.tags["prefect.flow_run_id"]]
        assert of_prefect[1] == run.data.tags["prefect.flow_run"]
        page = f"http://127.0.0.1:4200/runs/flow-run/{of_prefect[0]}"
        assert run.data.tags["prefect.flow_run_page"] == page and f"]({page})" in run.data.tags["mlflow.note.content"]
        assert [a.path for a in client.list_artifacts(run.info.run_id, "checkpoints")]
    models = client.search_registered_models()
    networks = {"digits-resnet8", "digits-resnet14", "digits-resnet20"}
    assert {m.name for m in models} == networks | {"ensemble-digits"}
    for model in models:
        version = client.get_model_version_by_alias(model.name, "candidate")
        assert version.version in ("1", 1)
        assert float(version.tags["center-16-of-18_top1_error"]) < 10
        assert model.name not in networks or float(version.tags["val_top1_error"]) < 10
        assert version.tags["dataset_fingerprint"] == fingerprint


def kept_scores(root, name):
    """Return the centre-crop scores of a registered candidate, and those images' files."""
    from resnet_pipeline.adapters.mlflow.runs import Tracking
    from resnet_pipeline.workspace import Workspace

    client = Tracking(Workspace(root)).client  # sets MLflow's own address, too
    digest = client.get_model_version_by_alias(name, "candidate").tags["weights_sha256"]
    (file,) = (root / "scores").rglob(f"val/center-16-of-18/{digest[:16]}.parquet")
    kept, split = read_scores(file), Dataset.open(root / "datasets" / "digits").splits["val"]
    number = {key: i for i, key in enumerate(split.keys)}
    return kept, [split.encoded(number[key]).tobytes() for key in kept.keys]


def test_a_registered_model_loads_in_mlflow_and_scores_the_same(demo):
    import mlflow
    import pandas as pd

    root, _ = demo
    kept, files = kept_scores(root, "digits-resnet20")
    model = mlflow.pyfunc.load_model("models:/digits-resnet20@candidate")
    found = model.predict(pd.DataFrame({"image": files[:50]}), params={"top": 10})
    for row, expected in zip(found.itertuples(), kept.probabilities[:50], strict=True):
        np.testing.assert_allclose(row.probabilities, expected[[int(label) for label in row.labels]], atol=1e-5)


def test_prefect_has_the_flow_runs(demo):
    root, _ = demo
    with sqlite3.connect(root / "prefect" / "prefect.db") as database:
        rows = database.execute(
            "select flow.name, count(*) from flow_run join flow on flow.id = flow_run.flow_id "
            "where flow_run.state_type = 'COMPLETED' group by flow.name"
        ).fetchall()
    database.close()
    assert dict(rows) == {"demo": 1, "stage-dataset": 1, "digits-train": 3, "ensemble-evaluate": 2}


def kept(root: Path) -> dict[str, object]:
    """Return what a repetition must leave alone: dataset, steps, weights, networks' scores, versions."""
    from resnet_pipeline.adapters.mlflow.runs import Tracking
    from resnet_pipeline.workspace import Workspace

    patterns = ("datasets/**/*", "runs/*/metrics.jsonl", "runs/*/checkpoints/*", "runs/*/*.safetensors", "scores/**/*")
    files = {file for pattern in patterns for file in root.glob(pattern) if file.is_file()}
    files -= set((root / "scores" / "ensembles").rglob("*"))  # averaged anew, from the networks' scores
    assert len([file for file in files if file.suffix == ".parquet" and "scores" in file.parts]) == 6
    versions = {(v.name, v.version) for v in Tracking(Workspace(root)).client.search_model_versions()}
    return {"files": {file: file.stat().st_mtime_ns for file in files}, "versions": versions}


def test_again_it_takes_no_step_scores_no_image_adds_no_version(demo, run_program):
    root, _ = demo
    before = kept(root)
    done = run_program("resnet-pipeline", "demo", cwd=root.parent)
    assert done.returncode == 0, done.stdout
    assert "3 of 3 networks were finished before and reused" in done.stdout
    assert "images/s  0:" not in done.stdout and "version 2" not in done.stdout
    assert kept(root) == before


@pytest.fixture(scope="module")
def server(demo, run_forked):
    """Register the demo's ensemble again, promote it, serve it as MLflow's users do; yield what asks it."""
    root, _ = demo
    runs = sorted(str(p) for p in (root / "runs").iterdir())
    for command, said in (
        (
            ("ensemble", *runs, "--dataset", "digits", "--protocol", "center", "--register", "ensemble-digits"),
            "already registered as ensemble-digits version 1",  # whatever the order of its members
        ),
        (("promote", "ensemble-digits", "--protocol", "center"), "version 1 is the champion now"),
    ):
        done = run_forked(*command, cwd=root.parent)
        assert done.returncode == 0 and said in done.stdout, done.stdout
    assert "mlflow models serve -m models:/ensemble-digits@champion" in done.stdout
    port, log = free_port(), root.parent / "serve.log"
    command = ("models", "serve", "-m", "models:/ensemble-digits@champion", "--env-manager", "local", "-p", str(port))
    own = {k: v for k, v in os.environ.items() if k != "MLFLOW_REGISTRY_URI"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(BINARIES / "mlflow"), *command],
            env={
                **own,
                "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow' / 'mlflow.db'}",
                "PATH": f"{BINARIES}:{own['PATH']}",
            },
            cwd=root.parent,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ask(path: str, body: object = None) -> tuple[int, str]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(urllib.error.URLError):
                if ask("ping")[0] == 200:
                    break
            time.sleep(0.5)
        yield ask
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def test_the_ensemble_is_served_over_http_and_answers_as_the_evaluation(demo, server):
    kept, files = kept_scores(demo[0], "ensemble-digits")
    encoded = [base64.b64encode(file).decode() for file in files[:8]]
    status, text = server("invocations", {"dataframe_records": [{"image": image} for image in encoded]})
    assert status == 200, text
    for row, expected in zip(json.loads(text)["predictions"], kept.probabilities[:8], strict=True):
        assert len(row["labels"]) == len(row["words"]) == 5
        np.testing.assert_allclose(row["probabilities"], expected[[int(label) for label in row["labels"]]], atol=1e-5)
        assert row["labels"][0] == str(expected.argmax())
    again = json.loads(server("invocations", {"inputs": {"image": encoded}})[1])["predictions"]
    assert [row["labels"] for row in again] == [row["labels"] for row in json.loads(text)["predictions"]]


def test_what_the_server_can_t_use_is_refused_and_it_lives_on(demo, server):
    _, files = kept_scores(demo[0], "ensemble-digits")
    good = base64.b64encode(files[0]).decode()
    half = base64.b64encode(files[0][: len(files[0]) // 2]).decode()
    for image, said in ((half, "image 2 can't be decoded"), ("AAAA", "no image format"), ("/etc/passwd", "")):
        status, text = server("invocations", {"dataframe_records": [{"image": good}, {"image": image}]})
        assert status == 400 and said in text and "Traceback" not in text, text
    for body, said in (
        ({"dataframe_records": [{"picture": good}]}, "image"),
        ({"dataframe_records": [{"image": good}], "params": {"protocol": "x"}}, "unknown protocol"),
    ):
        status, text = server("invocations", body)
        assert status == 400 and said in text, text
    assert server("ping")[0] == 200
    assert server("invocations", {"dataframe_records": [{"image": good}]})[0] == 200
