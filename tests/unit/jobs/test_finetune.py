"""Fine-tuning: from a folder to a registered, gated version; a linear probe is logistic regression."""

from __future__ import annotations

import base64
import io
import json
import runpy
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from PIL import Image
from sklearn.linear_model import LogisticRegression

from resnet_pipeline.adapters.mlflow.registry import resolve
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.cli.main import app
from resnet_pipeline.config import ConfigError
from resnet_pipeline.config_io import with_overrides
from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.trained_model import load_folder
from resnet_pipeline.jobs.finetune import FineTuning, backbone_of, dataset_name, finetune, tuning_config
from resnet_pipeline.jobs.initial_weights import InitialWeights, begun_with
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.train import run_config, train_run
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.models.weights import save_weights
from resnet_pipeline.storage import storage_at
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.tasks import ClassificationTask
from resnet_pipeline.workspace import Workspace
from tests.conftest import archive
from tests.images import jpeg
from tests.workspaces import with_database, with_digits

LOCAL = Launch(launcher="local")
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def space(tmp_path_factory, digits, mlflow_database) -> Workspace:
    return with_database(with_digits(tmp_path_factory.mktemp("tuned") / "work", digits), mlflow_database)


@pytest.fixture(scope="module")
def learned(space) -> RunDirectory:
    """Return a finished run whose features say something of digits."""
    changes = {"steps": 16, "eval_every": 1000, "checkpoint_every": 1000, "bn_images": 64}
    found = train_run(space, run_config("digits/resnet8", changes), "digits", LOCAL)
    assert found is not None
    return found.run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder of two classes, bright and dark images."""
    root = tmp_path_factory.mktemp("source") / "light and dark"
    for split, count in (("train", 12), ("val", 6)):
        for kind, shade in (("bright", 150), ("dark", 0)):
            for i in range(count):
                file = root / split / kind / f"{i:02d}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(shaded(shade, seed=i + 100 * len(split)))
    return root


def shaded(shade: int, seed: int) -> bytes:
    image = Image.open(io.BytesIO(jpeg(40, 40, seed=seed)))
    buffer = io.BytesIO()
    Image.fromarray((np.asarray(image) // 3 + shade).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


SMALL = {"batch": 8, "micro_batch": 8, "bn_images": 16}


def tuning_of(run: RunDirectory) -> FineTuning:
    return FineTuning(reference=run.name, epochs=4, size=16, frozen_stages=1, layer_decay=0.7, overrides=SMALL)


@pytest.mark.slow
def test_a_folder_becomes_a_tested_registered_champion(space, learned, folder):
    tuning = tuning_of(learned)
    found = finetune(space, tuning, str(folder), launch=LOCAL)
    assert found.dataset.manifest.name == "light-and-dark" and found.version.name == "light-and-dark-cifar-resnet8"
    assert found.images == 12 and found.errors.top1 <= found.errors.top1_interval[1]
    assert found.errors.top1 < 40, "bright and dark are easily told apart"
    assert found.promoted and "first champion" in found.promotion and "mlflow models serve" in (found.serve or "")
    assert found.report.is_file() and found.trained.run.name in found.report.read_text()
    tags = resolve(Tracking(space), found.version.uri).tags
    assert tags["dataset"] == "light-and-dark"
    config = found.trained.run.config()
    assert (config.steps, config.model.initial_head, config.optim.frozen_stages) == (12, "fresh", 1)
    assert (config.augment.crop, config.views.crop, config.views.resize) == (16, 16, 18)
    before, after = (load_folder(run.path).classifier.network.state_dict() for run in (learned, found.trained.run))
    same = {
        key.split(".")[0] for key in before if before[key].shape == after[key].shape and before[key].equal(after[key])
    }
    moved = {
        key.split(".")[0]
        for key in before
        if before[key].shape != after[key].shape or not before[key].equal(after[key])
    }
    assert {"conv1", "bn1", "layer1"} <= same and moved == {"layer2", "layer3", "fc"}
    again = finetune(space, tuning, str(folder), launch=LOCAL)
    assert again.trained.reused and again.dataset.reused and again.version.uri == found.version.uri
    assert again.promoted and again.promotion == "champion already"


@pytest.mark.slow
def test_the_champion_is_served_an_image_in_its_class_out(space, learned, folder, monkeypatch):
    """MLflow's server of the version that the gate names, with the scores of the test."""
    found = finetune(space, tuning_of(learned), str(folder), launch=LOCAL)
    Tracking(space)  # points MLflow at the workspace's registry
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    client = TestClient(scoring_server.init(mlflow.pyfunc.load_model(f"models:/{found.version.name}@champion")))
    files = sorted((folder / "val").rglob("*.jpg"))
    rows = [{"image": base64.b64encode(file.read_bytes()).decode()} for file in files]
    answer = client.post("/invocations", json={"dataframe_records": rows, "params": {"top": 2}})
    assert answer.status_code == 200, answer.text
    said = [row["labels"][0] for row in answer.json()["predictions"]]
    wrong = sum(label != file.parent.name for label, file in zip(said, files, strict=True))
    assert set(said) <= {"bright", "dark"} and 100 * wrong / len(files) == pytest.approx(found.errors.top1)


@pytest.mark.slow
def test_a_fine_tuned_run_lives_in_a_bucket(learned, folder, bucket, tmp_path, mlflow_database, monkeypatch):
    """Its data and its run are in the bucket alone: a machine that has nothing starts it again, and reuses it."""
    monkeypatch.setenv("RESNET_PIPELINE_RUNS", f"s3://{bucket}/runs")
    monkeypatch.setenv("RESNET_PIPELINE_DATA", f"s3://{bucket}/datasets")
    tuning = FineTuning(reference=str(learned.path), epochs=1, size=16, linear_probe=True, overrides=SMALL)
    first, second = (with_database(Workspace(tmp_path / name), mlflow_database) for name in ("first", "second"))
    found = finetune(first, tuning, str(folder), launch=LOCAL)
    home = {stored.name for stored in storage_at(f"s3://{bucket}/runs/{found.trained.run.name}").files()}
    assert {"initial.safetensors", "weights.safetensors", "result.json", "metrics.jsonl"} <= home
    again = finetune(second, tuning, str(folder), launch=LOCAL)
    assert again.trained.reused and again.dataset.reused and again.trained.result == found.trained.result
    assert again.errors == found.errors and again.promoted


@pytest.mark.slow
def test_a_version_that_is_not_better_is_kept_and_said_to_be_no_champion(space, learned, folder):
    first, second = (
        finetune(
            space,
            FineTuning(reference=learned.name, epochs=4, size=16, seed=seed, overrides=SMALL),
            str(folder),
            launch=LOCAL,
            registered_as="gated",
        )
        for seed in (0, 1)
    )
    assert first.promoted and not second.promoted and second.serve is None
    assert "better by more than chance" in second.promotion and second.version.version == "2"


@pytest.mark.slow
def test_a_linear_probe_is_logistic_regression_on_the_frozen_features(space, learned):
    """All images in each step, without augmentation: gradient descent ends where scikit-learn's solver does.

    The bias decays, too: it is the weight of a feature that is always 1.
    """
    decay = 0.1
    plain = {
        "optim.frozen_stages": 3, "optim.weight_decay": decay, "optim.lr": 0.1, "train_share": 0.04,
        "augment.shorter_side": [16, 16], "steps": 250, "log_every": 250, "eval_every": 250, "checkpoint_every": 250,
        "schedule.warmup": 0, "bn_images": 64, "optim.decay_norm": True, "model.initial_head": "fresh",
    }  # fmt: skip
    config = run_config("digits/resnet8", plain)
    images = len(open_dataset(space, "digits").trained_on(0.04).splits["train"])
    config = with_overrides(config, {"batch": images, "micro_batch": images})
    config, network = begun_with(space, config, "digits", InitialWeights(reference=learned.name))
    found = train_run(space, config, "digits", LOCAL, network)
    assert found is not None
    classifier = load_folder(found.run.path).classifier
    dataset = open_dataset(space, "digits").trained_on(0.04)
    with ClassificationTask(config, dataset, LocalContext()).batches(0, 1) as batches, torch.inference_mode():
        batch = next(iter(batches))
        features = classifier.network.features(classifier.normalize(batch.images)).mean((2, 3)).double().numpy()
    features = np.hstack([features, np.ones((images, 1))])
    solver = LogisticRegression(C=1 / (decay * images), fit_intercept=False, tol=1e-10, max_iter=10_000)
    solved = solver.fit(features, batch.labels.numpy())
    assert solved.classes_.tolist() == list(range(10))
    head = classifier.network.fc
    ours = torch.hstack([head.weight, head.bias[:, None]]).detach().double().numpy()
    np.testing.assert_allclose(ours, solved.coef_, atol=5e-3 * np.abs(solved.coef_).max())
    logits = torch.from_numpy(features @ ours.T)
    np.testing.assert_allclose(torch.softmax(logits, 1).numpy(), solved.predict_proba(features), atol=2e-3)


def reference(folder: Path, name: str = "cifar-resnet8", **options) -> str:
    file = folder / f"{name}.safetensors"
    save_weights(Classifier(Normalize(torch.zeros(3)), build_model(name, **options)), file, {})
    return f"{name}={file}"


def test_the_config_takes_shortcuts_and_counts_from_the_reference(space, tmp_path):
    backbone = backbone_of(space, reference(tmp_path, shortcut="B", num_classes=7))
    config = tuning_config(backbone, open_dataset(space, "digits"), FineTuning(reference="x", linear_probe=True))
    assert (config.model.shortcut, config.model.name) == ("B", "cifar-resnet8")
    assert (config.steps, config.eval_every) == (5 * 22, 22), "1,433 images in batches of 64"
    assert (config.optim.frozen_stages, config.optim.lr) == (3, 0.1)
    set_ = FineTuning(reference="x", norm_eval=True, overrides={"steps": 7, "optim.lr": 0.3})
    config = tuning_config(backbone, open_dataset(space, "digits"), set_)
    assert (config.steps, config.optim.lr, config.optim.norm_eval) == (7, 0.3, True)


@pytest.mark.parametrize(
    ("source", "name"),
    [("/data/cells", "cells"), ("cells/", "cells"), ("s3://b/a c.TAR.GZ", "a-c"), ("builtin:digits", "digits")],
)
def test_a_dataset_is_called_as_its_folder_is(source, name):
    assert dataset_name(source) == name


def test_what_can_t_be_is_one_line_before_anything_is_staged(space, tmp_path, folder):
    with pytest.raises(UserError, match="leave --frozen-stages and --layer-decay out"):
        FineTuning(reference="x", linear_probe=True, frozen_stages=1, layer_decay=0.5)
    for bad, words in [("no/such", "no model at"), (reference(tmp_path, "cifar-highway20"), "unknown recipe")]:
        with pytest.raises(UserError, match=words) as error:
            finetune(space, FineTuning(reference=bad), str(folder), "never", launch=LOCAL)
        assert "\n" not in str(error.value) and not Path(space.dataset("never")).exists()
    backbone, digits = backbone_of(space, reference(tmp_path)), open_dataset(space, "digits")
    with pytest.raises(ConfigError, match=r"optim.frozen_stages must lie between 0 and 3 for cifar-resnet8, not 4"):
        tuning_config(backbone, digits, FineTuning(reference="x", frozen_stages=4))
    with pytest.raises(ConfigError, match=r"optim.layer_decay must lie in \(0, 1\], not 0"):
        tuning_config(backbone, digits, FineTuning(reference="x", layer_decay=0.0))


@pytest.mark.slow
def test_the_command_says_what_came_of_it(space, learned, folder, tmp_path, capsys):
    result = tmp_path / "result.json"
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    app(
        ["finetune", learned.name, "--source", str(folder), "--root", str(space.root), "--size", "16", "--epochs", "1",
         "--linear-probe", "--launcher", "local", "--register", "probe", "--json", str(result), *sets],
        standalone_mode=False,
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "probe version 1 @candidate: top-1 error" in said and "95 % interval" in said and "on 12 images" in said
    assert "it is the champion: first champion" in said and "serve it:  " in said
    written = json.loads(result.read_text())
    assert written["promoted"] and written["version"] == "models:/probe/1"


@pytest.mark.slow
def test_cells_are_cut_out_of_bccd_by_their_boxes(tmp_path):
    cut_out = runpy.run_path(str(EXAMPLES / "blood_cells.py"))["cut_out"]
    counts = cut_out(archive("RESNET_PIPELINE_BCCD"), tmp_path, 5)
    assert counts == {
        "train": {"WBC": 5, "RBC": 5, "Platelets": 5},
        "val": {"RBC": 805, "WBC": 71, "Platelets": 69},  # the boxes of the published split's test images
    }
    written = Counter((file.parts[-3], file.parts[-2]) for file in tmp_path.rglob("*.png"))
    assert written == {(split, kind): n for split, kinds in counts.items() for kind, n in kinds.items()}
