"""The GPU's paths: the same code with another device. They have only been written, unless docs/RESULTS.md says else."""

from __future__ import annotations

import json

import pytest
import torch

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.data.decoding_check import tried, way_for
from resnet_pipeline.data.loaders import train_batches, view_batches
from resnet_pipeline.evaluation.protocols import protocol_of
from resnet_pipeline.evaluation.scoring import evaluate
from resnet_pipeline.models import Classifier, Normalize, build_model
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import ProfileEntry
from resnet_pipeline.training.signals import PROFILE
from resnet_pipeline.training.system import SystemMetrics
from tests.metrics import entries, losses

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda", 0)


def check_pixels(gpu, cpu):
    """Compare coloured images uint8 [..., 3]: each channel's mean difference, and how far the worst percent is off.

    Another window, a mirror image, exchanged channels or chroma that is not interpolated differ by ten and more.
    """
    difference = (gpu.cpu().int() - cpu.int()).abs().reshape(-1, 3)
    assert difference.float().mean(0).max() < 1.5
    assert difference.float().flatten().quantile(0.99) <= 6
    assert cpu.float().reshape(-1, 3).std(0).min() > 20, "each channel has something to compare"


@pytest.mark.parametrize("way", ["regions", "whole", "cpu"])
def test_decoding_for_a_gpu_gives_nearly_the_cpu_s_batches(photo_set, monkeypatch, way):
    monkeypatch.setenv("RESNET_PIPELINE_GPU_DECODING", way)
    augment = AugmentConfig(kind="scale-crop", crop=96, shorter_side=(110, 200), color=0.1)
    options = {"augment": augment, "seed": 0, "batch": 8, "micro_batch": 4, "steps": 6}
    with train_batches(photo_set, device=CUDA, **options) as gpu, train_batches(photo_set, **options) as cpu:
        for a, b in zip(gpu, cpu, strict=True):
            assert a.images.device == CUDA
            assert torch.equal(a.index, b.index) and torch.equal(a.color.cpu(), b.color)
            check_pixels(a.images, b.images)


def test_the_way_that_works_is_found_once_for_each_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("RESNET_PIPELINE_CACHE", str(tmp_path))
    way = way_for("cuda:0")
    assert not tried("cuda:0", way).problem
    (kept,) = (tmp_path / "decoding").iterdir()
    assert json.loads(kept.read_text())["way"] == way


@pytest.mark.parametrize("views", ["center", "10-crop"])
def test_views_are_nearly_the_cpu_s(photo_set, views):
    options = {"split": "val", "views": views, "resize": 128, "crop": 96, "batch_size": 4}
    with view_batches(photo_set, device=CUDA, **options) as gpu, view_batches(photo_set, **options) as cpu:
        for a, b in zip(gpu, cpu, strict=True):
            assert torch.equal(a.index.cpu(), b.index.cpu())
            check_pixels(a.images, b.images)


def test_a_run_on_the_gpu_learns_and_resumes(make_run, digits):
    run = make_run("steps=60")
    steps = iter(range(10))
    assert not train(run, digits, LocalContext(device=CUDA, stop=lambda: next(steps, None) is None))
    assert train(run, digits, LocalContext(device=CUDA))
    assert run.result().device == "cuda:0"
    assert run.result().train_error < 60


def test_a_compiled_run_with_cuda_graphs_computes_what_an_eager_one_does(make_run, digits):
    today = ["precision=bf16", "optim.ema=0.9", "growth.first=8", "growth.multiple=4", "steps=40", "log_every=1"]
    runs = {flag: make_run(*today, f"compile={flag}", folder=flag) for flag in ("false", "true")}
    for run in runs.values():
        run.signals.put(PROFILE)
        assert train(run, digits, LocalContext(device=CUDA))
        ((_, profile),) = entries(run, ProfileEntry)
        shares = (profile.data, profile.compute, profile.communication, profile.host)
        assert sum(shares) == pytest.approx(1, abs=1e-4)
        assert profile.compute > 0
    compiled, eager = losses(runs["true"]), losses(runs["false"])
    assert compiled[:5] == pytest.approx(eager[:5], rel=0.02)
    assert compiled[-1] < compiled[0]


def test_scores_are_nearly_the_cpu_s(digits):
    recipe = get_recipe("digits/resnet8")
    torch.manual_seed(0)
    model = Classifier(Normalize(torch.full((3,), 90.0)), build_model("cifar-resnet8"))
    protocol = protocol_of("10-crop", recipe.views)
    gpu = evaluate({"a": model}, digits, protocol, device=CUDA)["a"].probabilities
    cpu = evaluate({"a": model.cpu()}, digits, protocol)["a"].probabilities
    assert abs(gpu - cpu).max() < 0.05
    assert (gpu.argmax(1) == cpu.argmax(1)).mean() > 0.95 and cpu.argmax(1).std() > 0


def test_the_gpu_s_use_is_among_the_system_metrics():
    values = SystemMetrics(CUDA).read()
    assert values["gpu_memory_usage_megabytes"] > 0 and 0 < values["gpu_memory_usage_percentage"] <= 100
    assert 0 <= values["gpu_utilization_percentage"] <= 100
