"""The main job as a stranger runs it: one command in an empty folder."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.evaluation.ensemble import average, errors_of
from resnet_pipeline.evaluation.scores import read_scores

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory, run_program):
    folder = tmp_path_factory.mktemp("elsewhere")
    start = time.monotonic()
    done = run_program("resnet-pipeline", "demo", cwd=folder, timeout=400)
    assert done.returncode == 0, done.stdout
    return folder / "work", done.stdout, time.monotonic() - start


def test_it_is_quick_and_ends_with_the_report(demo):
    root, out, seconds = demo
    assert seconds < 240
    lines = out.strip().splitlines()
    assert lines[-1] == f"Report: {root / 'reports' / 'digits.html'}"
    assert "mlflow server" in lines[-3] and "prefect server start" in lines[-2]
    page = (root / "reports" / "digits.html").read_text()
    assert "ensemble of 3" in page and "<svg" in page
    for depth in (8, 14, 20):
        assert re.search(rf"digits/resnet{depth} +step \d+/600 ", out), "progress is visible"
    assert "Traceback" not in out and "Warning" not in out


def test_the_ensemble_s_error_is_at_most_3_percent_and_comes_from_the_score_files(demo):
    root, out, _ = demo
    dataset = Dataset.open(root / "datasets" / "digits")
    for protocol in ("center-16-of-18", "10-crop-16-of-18-mirrored"):
        files = sorted((root / "scores" / dataset.fingerprint[:12] / "val" / protocol).glob("*.parquet"))
        scores = [read_scores(f) for f in files]
        assert len(scores) == 3
        assert sorted(scores[0].keys) == sorted(dataset.splits["val"].keys)
        errors = errors_of(average(scores))
        assert errors["top1"] <= 3
        np.testing.assert_allclose([s.probabilities.sum(1) for s in scores], 1, atol=1e-4)
        assert f"top-1 error {errors['top1']:.2f} %" in out


def test_mlflow_has_runs_metrics_parameters_checkpoints_and_versions(demo, monkeypatch):
    from resnet_pipeline.adapters.mlflow_tracking import Tracking
    from resnet_pipeline.workspace import Workspace

    root, _, _ = demo
    client = Tracking(Workspace(root)).client
    (experiment,) = [e for e in client.search_experiments() if e.name == "resnet-pipeline"]
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 3 and {r.info.status for r in runs} == {"FINISHED"}
    fingerprint = Dataset.open(root / "datasets" / "digits").fingerprint
    for run in runs:
        assert run.data.tags["dataset_fingerprint"] == fingerprint
        assert run.data.params["optim.lr"] == "0.1"
        assert run.data.tags["workers"] == "2"
        history = client.get_metric_history(run.info.run_id, "train_loss")
        assert [m.step for m in history] == list(range(10, 601, 10))
        assert {"val_top1_error", "images_per_second", "data_wait", "gradient_norm"} <= set(run.data.metrics)
        assert [a.path for a in client.list_artifacts(run.info.run_id, "checkpoints")]
    models = client.search_registered_models()
    assert {m.name for m in models} == {"digits-resnet8", "digits-resnet14", "digits-resnet20"}
    for model in models:
        version = client.get_model_version_by_alias(model.name, "candidate")
        assert version.version in ("1", 1)
        assert float(version.tags["val_top1_error"]) < 10
        assert version.tags["dataset_fingerprint"] == fingerprint


def test_a_registered_model_loads_in_mlflow_and_scores_the_same(demo, monkeypatch):
    import mlflow
    import torch

    from resnet_pipeline.adapters.mlflow_tracking import Tracking
    from resnet_pipeline.data.loaders import view_batches
    from resnet_pipeline.workspace import Workspace

    root, _, _ = demo
    dataset = Dataset.open(root / "datasets" / "digits")
    client = Tracking(Workspace(root)).client
    model = mlflow.pyfunc.load_model("models:/digits-resnet20@candidate")
    digest = client.get_model_version_by_alias("digits-resnet20", "candidate").tags["weights_sha256"]
    (file,) = (root / "scores").glob(f"*/val/center-16-of-18/{digest[:16]}.parquet")
    kept = read_scores(file)
    with view_batches(dataset, split="val", views="center", resize=18, crop=16, batch_size=50) as batches:
        batch = next(iter(batches))
    predicted = model.predict(batch.images[:, 0].numpy())
    np.testing.assert_allclose(predicted, kept.probabilities[:50], atol=1e-5)
    assert torch.equal(batch.labels, torch.from_numpy(kept.labels[:50]))


def test_prefect_has_the_flow_runs(demo):
    import sqlite3

    root, _, _ = demo
    with sqlite3.connect(root / "prefect" / "prefect.db") as database:
        rows = database.execute(
            "select flow.name, count(*) from flow_run join flow on flow.id = flow_run.flow_id "
            "where flow_run.state_type = 'COMPLETED' group by flow.name"
        ).fetchall()
    database.close()
    assert dict(rows) == {"demo": 1, "stage-dataset": 1, "digits-train": 3, "ensemble-evaluate": 2}


def test_running_it_again_reuses_everything_in_seconds(demo, run_program):
    root, _, _ = demo
    before = {p: p.stat().st_mtime_ns for p in Path(root / "runs").rglob("*.safetensors")}
    start = time.monotonic()
    done = run_program("resnet-pipeline", "demo", cwd=root.parent)
    assert done.returncode == 0, done.stdout
    assert time.monotonic() - start < 30
    assert "3 of 3 networks were finished before and reused" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in Path(root / "runs").rglob("*.safetensors")}
