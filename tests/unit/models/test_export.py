from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
import torchvision
from safetensors.torch import load_file

from resnet_pipeline.errors import UserError
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.models.export import METADATA_FILE, export_onnx, export_program, export_torchvision
from resnet_pipeline.models.weights import build_for_weights, read_metadata


def classifier_of(name, mean, std=None, **options):
    torch.manual_seed(0)
    network = build_model(name, num_classes=5, **options)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return Classifier(Normalize(mean, std), network)


def images_of(size, number=4):
    return torch.randint(0, 256, (number, size, size, 3), dtype=torch.uint8)


CASES = [
    ("cifar-resnet8", 32, torch.rand(32, 32, 3) * 255, None, {}),
    ("cifar-highway8", 32, torch.rand(3) * 255, torch.rand(3) * 50 + 20, {}),
    pytest.param("resnet18", 70, torch.rand(3) * 255, None, {"pooling": "caffe"}, marks=pytest.mark.slow),
]


EXPORT = """
import sys
from pathlib import Path
import torch
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.models.export import export_onnx

classifier = Classifier(Normalize(torch.zeros(3)), build_model("cifar-resnet8"))
export_onnx(classifier, Path(sys.argv[1]), size=8, metadata={})
"""


@pytest.mark.slow
def test_an_export_leaves_no_id_of_the_machine_for_anyone_s_statistics(tmp_path):
    own = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    (tmp_path / "home").mkdir()
    command = [sys.executable, "-c", EXPORT, str(tmp_path / "net.onnx")]
    subprocess.run(command, env={**own, "HOME": str(tmp_path / "home")}, check=True)
    assert (tmp_path / "net.onnx").exists() and not list((tmp_path / "home").rglob("*deviceid*"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "mean", "std", "options"), CASES)
def test_onnx_computes_the_same_from_raw_images_in_any_number(tmp_path, name, size, mean, std, options):
    classifier = classifier_of(name, mean, std, **options)
    path = tmp_path / "model.onnx"
    export_onnx(classifier, path, size=size, metadata={"recipe": "x"})
    assert classifier.training and next(classifier.parameters()).requires_grad  # untouched
    onnx.checker.check_model(str(path))
    assert {p.key: p.value for p in onnx.load(path).metadata_props}["recipe"] == "x"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for number in (1, 5):
        images = images_of(size, number)
        (logits,) = session.run(None, {"images": images.numpy()})
        with torch.inference_mode():
            expected = classifier.eval()(images)
        torch.testing.assert_close(
            torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
        )
        classifier.train()
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "mean", "std", "options"), CASES)
def test_the_exported_program_computes_the_same_in_any_number(tmp_path, name, size, mean, std, options):
    classifier = classifier_of(name, mean, std, **options)
    path = tmp_path / "model.pt2"
    export_program(classifier, path, size=size, metadata={"recipe": "x"})
    extra = {METADATA_FILE: ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra[METADATA_FILE]) == {"recipe": "x"}
    classifier.eval()
    for number in (1, 5):
        images = images_of(size, number)
        with torch.inference_mode():
            torch.testing.assert_close(program(images), classifier(images))


@pytest.mark.slow
@pytest.mark.parametrize("mean", [torch.tensor([120.0, 115.0, 100.0]), torch.rand(8, 8, 3) * 255])
def test_torchvision_takes_the_network_and_the_metadata_its_preprocessing(tmp_path, mean):
    classifier = classifier_of("resnet18", mean, torch.tensor([58.0, 57.0, 56.0])).eval()
    path = tmp_path / "model.safetensors"
    export_torchvision(classifier, path, {"recipe": "x"})
    theirs = torchvision.models.resnet18(num_classes=5).eval()
    theirs.load_state_dict(load_file(path))
    metadata = read_metadata(path)
    assert metadata["recipe"] == "x"
    said = {key: torch.tensor(value) for key, value in json.loads(metadata["normalize"]).items()}
    images = images_of(64) if mean.dim() == 1 else images_of(8)
    with torch.inference_mode():
        expected = classifier(images)
        x = ((images - said["mean"]) / said["std"]).permute(0, 3, 1, 2)
        torch.testing.assert_close(theirs(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
        again = build_for_weights("resnet18", path).eval()
        torch.testing.assert_close(again(x), theirs(x))


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    classifier = classifier_of("resnet50", torch.zeros(3))
    with pytest.raises(UserError, match="stride is v1"):
        export_torchvision(classifier, tmp_path / "w.safetensors", {})
    for export, name in ((export_onnx, "w.pt"), (export_program, "w.onnx")):
        with pytest.raises(UserError, match=name):
            export(classifier, tmp_path / name, size=32, metadata={})
    with pytest.raises(UserError, match=r"w\.pth"):
        export_torchvision(classifier, tmp_path / "w.pth", {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs onnx, onnxscript, onnxruntime"):
        export_onnx(classifier, tmp_path / "w.onnx", size=32, metadata={})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_written(tmp_path):
    classifier = classifier_of("cifar-resnet8", torch.zeros(3))
    classifier.network.fc.bias.data[0] = float("nan")
    with pytest.raises(UserError, match="is not written: its logits differ"):
        export_program(classifier, tmp_path / "w.pt2", size=32, metadata={})
    assert not list(tmp_path.iterdir())
