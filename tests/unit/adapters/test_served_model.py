"""A server of models: what it loads, and what it refuses so that it answers the next request."""

from __future__ import annotations

import base64
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server

from resnet_pipeline.adapters.mlflow_model import ServedModel
from resnet_pipeline.config import ViewConfig
from resnet_pipeline.evaluation.predictor import Predictions, Predictor
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.models.weights import save_weights
from tests.images import jpeg

SERVE = """
import sys
from pathlib import Path
import pandas
from resnet_pipeline.adapters.mlflow_model import _load_pyfunc

model = _load_pyfunc(sys.argv[1])
found = model.predict(pandas.DataFrame({"image": [Path(sys.argv[2]).read_bytes()]}))
assert len(found["labels"][0]) == 5
unwanted = ("training", "jobs", "report", "recipes", "staging", "adapters.ray", "adapters.mlflow.registry")
names = tuple(f"resnet_pipeline.{name}" for name in unwanted)
print(sorted(m for m in sys.modules if m.startswith((*names, "ray.", "prefect.", "rich."))))
"""


@pytest.mark.slow
def test_a_served_network_predicts_without_the_training_package(make_run, digits, tmp_path):
    run = make_run()
    network = build_model(run.config().model.name, num_classes=len(digits.classes))
    classifier = Classifier(Normalize(torch.full((3,), 128.0)), network)
    save_weights(classifier, run.weights_file, {})
    (tmp_path / "image.jpg").write_bytes(jpeg(40, 40))
    command = [sys.executable, "-c", SERVE, str(run.path), str(tmp_path / "image.jpg")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


class Fixed:
    """A predictor that always says the same of every image."""

    members = ()
    classes = class_words = ("a", "b")
    largest = Predictor.largest

    def predict(self, images, *, protocol, top):
        return Predictions(classes=np.zeros((len(images), 1), np.int64), probabilities=np.ones((len(images), 1)))


@pytest.fixture
def served(monkeypatch):
    """Return a served model, and a function that posts images to MLflow's server of it: (status, text)."""
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    monkeypatch.setenv("RESNET_PIPELINE_SERVING_IMAGE_MEGAPIXELS", "0.2")
    monkeypatch.setenv("RESNET_PIPELINE_SERVING_IMAGE_MB", "0.1")
    monkeypatch.setenv("RESNET_PIPELINE_SERVING_MEGAPIXELS", "0.5")
    model = ServedModel(Fixed())
    model.metadata = SimpleNamespace(get_input_schema=lambda: None)
    client = TestClient(scoring_server.init(model))

    def post(*images, **params):
        rows = [{"image": base64.b64encode(image).decode()} for image in images]
        found = client.post("/invocations", json={"dataframe_records": rows, "params": params})
        return found.status_code, found.text

    return model, post


GOOD = jpeg(40, 40)


@pytest.mark.parametrize("image", [jpeg(500, 500), b"\0" * 110_000], ids=["pixels", "bytes"])
def test_an_image_beyond_the_limits_of_serving_is_http_413(served, image):
    _, post = served
    status, text = post(GOOD, image)
    assert status == 413 and "image 2" in text
    assert post(GOOD)[0] == 200


def test_a_request_of_too_many_pixels_is_http_413(served):
    _, post = served
    assert post(*[jpeg(400, 400)] * 3)[0] == 200
    status, text = post(*[jpeg(400, 400)] * 4)
    assert status == 413 and "SERVING_MEGAPIXELS" in text
    assert post(GOOD)[0] == 200


def test_the_smallest_images_count_as_what_they_become(served):
    _, post = served
    assert post(*[jpeg(16, 16)] * 9)[0] == 200
    assert post(*[jpeg(16, 16)] * 10)[0] == 413


def test_requests_beyond_the_room_there_is_now_are_http_503(served):
    model, post = served
    with model._door.room.taken(400_000):
        status, text = post(jpeg(400, 400))
        assert status == 503 and "later" in text
        assert post(GOOD)[0] == 200
    assert post(jpeg(400, 400))[0] == 200


def test_a_request_that_fails_gives_its_room_back(served):
    _, post = served
    for _ in range(12):
        assert post(b"no image")[0] == 400
    assert post(*[jpeg(400, 400)] * 3)[0] == 200


def test_a_thin_image_counts_as_long_as_it_becomes(served):
    model, post = served
    views = SimpleNamespace(views=ViewConfig(crop=16, resize=18, scales=(16, 64)))
    model._predictor.members = (views,)
    thin = jpeg(8, 400)
    assert post(thin, protocol="center")[0] == 200
    status, text = post(thin, protocol="multi-scale")  # 64×3,200 pixels
    assert status == 413 and "204,800" in text


def test_a_model_of_one_s_own_has_no_limits_of_a_server(served, monkeypatch):
    model, _ = served
    monkeypatch.delenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT")
    assert len(model.predict(pandas.DataFrame({"image": [jpeg(500, 500)] * 4}))) == 4
