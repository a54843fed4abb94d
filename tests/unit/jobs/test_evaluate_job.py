from __future__ import annotations

import copy
import dataclasses
import logging
import os
import signal
import time
import weakref

import numpy as np
import pytest
import torch

from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation import scoring, trained_model
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.scores import read_scores
from resnet_pipeline.jobs.analyse import analyse, ensemble, score_sources, submit
from resnet_pipeline.jobs.evaluate import TestRow, evaluate_models, on_ray
from resnet_pipeline.jobs.references import load
from resnet_pipeline.logs import handled
from resnet_pipeline.models import build_model, weights
from resnet_pipeline.models.weights import weights_sha256
from resnet_pipeline.progress import displayed_on
from resnet_pipeline.records import plain
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from tests.launching import Started
from tests.recording import Recording
from tests.workspaces import with_digits

CENTER = TestSpec(dataset="digits", protocol="center", images=100)


@pytest.fixture
def models(tmp_path):
    for depth in (8, 14):
        torch.manual_seed(depth)
        torch.save(build_model(f"cifar-resnet{depth}").state_dict(), tmp_path / f"{depth}.pth")
    return [f"cifar-resnet{depth}={tmp_path / f'{depth}.pth'}" for depth in (8, 14)]


def run(workspace, models, **options):
    return evaluate_models(workspace, models, TestSpec(dataset="digits", protocol="center", **options))


@pytest.mark.slow
def test_a_test_that_was_stopped_goes_on_with_what_is_missing(workspace, models, monkeypatch, tmp_path, digits, caplog):
    monkeypatch.setattr(scoring, "CHUNK_PIXELS", 60 * 32 * 32)
    whole = run(workspace, models)[0].scores
    again = with_digits(tmp_path / "again", digits)
    real, calls = scoring.view_batches, []

    def counted(*arguments, **options):
        calls.append(options["indices"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(scoring, "view_batches", counted)
    with pytest.raises(KeyboardInterrupt):
        run(again, models)
    assert not list(again.scores.glob("*/*/*/*.parquet")), "no score file before all is there"
    calls.clear()
    # one chunk of one model is lost as well, as on a full disk
    lost = sorted(again.scores.glob("*/*/*/*.parts/00001-*"))[0]
    lost.write_bytes(lost.read_bytes()[:100])
    monkeypatch.setattr(scoring, "view_batches", lambda *a, **o: calls.append(o["indices"]) or real(*a, **o))
    caplog.set_level(logging.INFO, "resnet_pipeline.jobs")
    display = Recording()
    with displayed_on(display):
        found = run(again, models)
    assert "resuming with 5 of 7 chunks" in caplog.messages[0] and len(calls) == 5
    assert [at.reached for at in display.shown] == sorted(at.reached for at in display.shown)
    assert display.shown[-1][:3] == ("center: cifar-resnet8=8.pth, cifar-resnet14=14.pth", 364 - 2 * 60, 364 - 2 * 60)
    assert sum(map(len, calls)) == 364 - 2 * 60
    for one in found:
        np.testing.assert_array_equal(one.scores.keys, whole.keys)
    np.testing.assert_array_equal(found[0].scores.probabilities, whole.probabilities)
    assert not list(again.scores.glob("*/*/*/*.parts"))
    assert [e.reused for e in run(again, models)] == [True, True]


@pytest.mark.parametrize(
    ("address", "workers", "gpus", "chunks", "is_ray_s"),
    [
        (None, None, 0, 9, False),  # a laptop
        (None, None, 1, 9, False),
        (None, None, 8, 9, True),
        (None, None, 8, 1, False),
        (None, 1, 0, 1, True),
        ("head:6379", None, 0, 1, True),  # a cluster: this process may have no GPU
    ],
)
def test_who_tests(monkeypatch, address, workers, gpus, chunks, is_ray_s):
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    assert on_ray(workers, chunks) == is_ray_s


@pytest.mark.slow
def test_on_several_workers_the_seconds_are_those_of_the_evaluation(workspace, models, monkeypatch):
    """Seven chunks take the workers 1 and 3 seconds of each network, 28 in all, and the evaluation half as long."""
    monkeypatch.setattr(scoring, "CHUNK_PIXELS", 60 * 32 * 32)

    def on_two_workers(networks, space, plan, *, parts, lacking, digests, workers, bar):
        for number, names in lacking.items():
            own = {name: networks[name] for name in names}
            (found,) = scoring.score_chunks(own, plan.only([number]), digests=digests)
            for name, seconds in zip(models, (1.0, 3.0), strict=True):
                parts[name].keep(number, dataclasses.replace(found[name], seconds=seconds))
        return 14.0

    monkeypatch.setattr("resnet_pipeline.adapters.ray.evaluate.score_on_ray", on_two_workers)
    found = run(workspace, models, workers=2)
    assert [e.scores.seconds for e in found] == pytest.approx([3.5, 10.5])
    assert TestRow.of(found[0]).images_per_second == pytest.approx(364 / 3.5)
    assert read_scores(found[1].path).seconds == pytest.approx(10.5)


@pytest.mark.slow
def test_a_killed_test_goes_on(workspace, models):
    code = (
        "import sys; from pathlib import Path; from resnet_pipeline.workspace import Workspace\n"
        "from resnet_pipeline.evaluation import scoring; scoring.CHUNK_PIXELS = 20 * 32 * 32\n"
        "from resnet_pipeline.jobs.evaluate import evaluate_models\n"
        "from resnet_pipeline.evaluation.protocols import TestSpec\n"
        "test = TestSpec(dataset='digits', protocol='center')\n"
        "from resnet_pipeline.logs import configured\n"
        "with configured():\n"
        "    evaluate_models(Workspace(Path(sys.argv[1])), sys.argv[2:], test)\n"
    )
    given = [str(workspace.root), models[0]]
    process = Started(code, given, os.environ)
    deadline = time.monotonic() + 120
    while not list(workspace.scores.glob("*/*/*/*.parts/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    assert process.wait(100) == -signal.SIGKILL
    assert not list(workspace.scores.glob("*/*/*/*.parquet"))
    kept = len(list(workspace.scores.glob("*/*/*/*.parts/0*.parquet")))
    assert 0 < kept < 19
    again = Started(code, given, os.environ)
    assert f"resuming with {19 - kept} of 19 chunks" in again.errors(300) and again.returncode == 0
    (file,) = workspace.scores.glob("*/*/*/*.parquet")
    assert len(read_scores(file).keys) == 364


@pytest.mark.slow
def test_a_run_s_weights_are_hashed_once_in_the_precision_that_they_were_written_in(
    workspace, make_run, digits, monkeypatch
):
    run_ = make_run("precision=float64", "steps=1")
    assert train(run_, digits, LocalContext())
    hashed = []

    def counted(tensors):
        hashed.append(tensors)
        return weights_sha256(tensors)

    for module in (weights, scoring, trained_model):
        monkeypatch.setattr(module, "weights_sha256", counted)
    (found,) = run(workspace, [str(run_.path)], images=20)
    assert found.scores.weights_sha256 == found.member.weights_sha256 == run_.result().weights_sha256
    assert len(hashed) == 1


def test_scores_in_half_precision_by_parameter(workspace, models):
    (whole,), (half,) = run(workspace, models[:1], images=50), run(workspace, models[:1], images=51, half=True)
    assert whole.scores.probabilities.dtype == np.float32 and half.scores.probabilities.dtype == np.float16


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["bits", "another's"])
def test_kept_scores_that_are_damaged_are_computed_again(workspace, models, damage, caplog):
    whole, other = run(workspace, models, images=50)
    content = bytearray(whole.path.read_bytes())
    if damage == "bits":
        content[400:800:8] = bytes(byte ^ 64 for byte in content[400:800:8])
    else:
        content = other.path.read_bytes()
    whole.path.write_bytes(content)
    again, kept = run(workspace, models, images=50)
    assert (again.reused, kept.reused) == (False, True)
    np.testing.assert_array_equal(again.scores.probabilities, whole.scores.probabilities)
    np.testing.assert_array_equal(read_scores(whole.path).probabilities, whole.scores.probabilities)
    (line,) = [line for line in caplog.messages if "computed again" in line]
    assert str(whole.path) in line and "\n" not in line


def test_the_same_weights_under_two_names_are_run_once(workspace, models, tmp_path, monkeypatch):
    (tmp_path / "copy.pth").write_bytes((tmp_path / "8.pth").read_bytes())
    real, tested = scoring.fold_batch_norm, []
    monkeypatch.setattr(scoring, "fold_batch_norm", lambda model: tested.append(model) or real(model))
    first, second = run(workspace, [models[0], f"cifar-resnet8={tmp_path / 'copy.pth'}"], images=20)
    assert first.path == second.path and len(tested) == 1
    assert first.errors == second.errors


@pytest.mark.slow
def test_networks_whose_scores_are_kept_are_in_memory_one_at_a_time(workspace, models, monkeypatch):
    run(workspace, models, images=20)
    loaded: list[weakref.ref[torch.nn.Module]] = []

    def watched(*arguments):
        assert not [one for one in loaded if one() is not None]
        member = load(*arguments)
        loaded.append(weakref.ref(member.classifier))
        return member

    monkeypatch.setattr("resnet_pipeline.jobs.evaluate.load", watched)
    found = run(workspace, models, images=20)
    assert len(loaded) == 2 and [e.member.network for e in found] == ["cifar-resnet8", "cifar-resnet14"]


@pytest.mark.slow
def test_scales_and_averages_have_files_of_their_own(workspace, models):
    options = [{}, {"scales": [36]}, {"average": "logits"}, {"scales": [32, 36]}]
    paths = {run(workspace, models[:1], images=20, **o)[0].path for o in options}
    assert len(paths) == 4


@pytest.mark.slow
def test_an_ensemble_of_models_and_of_their_score_files_is_one(workspace, models):
    evaluated = run(workspace, models, images=100)
    by_model = ensemble(score_sources(workspace, models, CENTER))
    files = [str(e.path) for e in evaluated]
    by_file = ensemble(score_sources(workspace, files, None), fit=True, greedy=True, contributions=True)
    assert by_file.ensemble == by_model.ensemble
    errors = by_file.ensemble.errors
    assert errors.top1_interval[0] <= errors.top1 <= errors.top1_interval[1]
    assert sum(by_file.fitted.weights) == pytest.approx(1)
    assert by_file.fitted.fitted_on + by_file.fitted.reported_on == 100
    assert sorted(step.member for step in by_file.greedy) == sorted(files)
    assert by_file.greedy[-1].top1 == errors.top1
    assert by_file.without[0].top1 == evaluated[1].errors.top1
    assert by_file.paper is None, "not 1,000 classes"


def test_bad_input_is_named(workspace, models, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--dataset"):
        score_sources(workspace, models, None)
    with pytest.raises(UserError, match=r"gone\.parquet"):
        ensemble(score_sources(workspace, [str(tmp_path / "gone.parquet")], None))
    with pytest.raises(UserError, match="no split 'test'"):
        run(workspace, models, split="test")
    with pytest.raises(UserError, match=r"gone\.pth"):
        run(workspace, [f"cifar-resnet8={tmp_path / 'gone.pth'}"])
    torch.save(build_model("cifar-resnet8", num_classes=7).state_dict(), tmp_path / "7.pth")
    with pytest.raises(UserError, match="7 classes, dataset 'digits' has 10"):
        run(workspace, [f"cifar-resnet8={tmp_path / '7.pth'}"])
    with pytest.raises(UserError, match="no model at 'some/where'"):
        run(workspace, ["some/where"])

    def away(*arguments):
        raise UserError("MLflow: not found")

    monkeypatch.setattr("resnet_pipeline.jobs.references.fetched_model", away)
    monkeypatch.setattr("resnet_pipeline.jobs.references.trained_by", lambda *arguments: [])
    with pytest.raises(UserError, match=r"imagenet/resnet34-b of seed 0 is not registered; imagenet/resnet34-c"):
        run(workspace, ["ilsvrc2015"])
    with pytest.raises(UserError, match="no run directory of that name: MLflow: not found"):
        run(workspace, ["nothing"])


def test_unlabelled_images_end_in_a_submission(workspace, digits, tmp_path, monkeypatch):
    wide = copy.copy(digits)
    wide.classes = [f"n{i:08d}" for i in range(1000)]
    test = copy.copy(digits.splits["val"])
    test.labels = np.full(len(test), -1)
    wide.splits = {"test": test}
    monkeypatch.setattr("resnet_pipeline.data.dataset.Dataset.open", lambda *place: wide)
    torch.save(build_model("cifar-resnet8", num_classes=1000).state_dict(), tmp_path / "w.pth")
    (tmp_path / "ids.txt").write_text("".join(f"n{i:08d} {1000 - i}\n" for i in range(1000)))
    model = f"cifar-resnet8={tmp_path / 'w.pth'}"
    (evaluated,) = run(workspace, [model], split="test", images=30)
    with pytest.raises(UserError, match="no label"):
        _ = evaluated.errors
    assert plain(TestRow.of(evaluated)).keys() & {"images", "top1", "top5_interval"} == {"images"}
    sources = score_sources(workspace, [str(evaluated.path)], None)
    assert submit(workspace, sources, "digits", tmp_path / "ids.txt", tmp_path / "s.txt") == 30
    first = min(range(30), key=lambda row: evaluated.scores.keys[row].rpartition("/")[2])
    best = np.argsort(-evaluated.scores.probabilities[first], kind="stable")[:5]
    assert (tmp_path / "s.txt").read_text().splitlines()[0] == " ".join(str(1000 - i) for i in best)
    with pytest.raises(UserError, match="no label"):
        analyse(sources)
    assert plain(ensemble(sources).ensemble) == {"images": 30.0}


@pytest.mark.slow
def test_the_ensemble_s_flow_ends_with_its_errors_and_each_member_s_part(workspace, models, monkeypatch, caplog):
    from flows import evaluate as flows

    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(workspace.root))
    tables = []
    monkeypatch.setattr(flows, "table", lambda key, rows, description: tables.append(rows))
    for task in ("score", "score_members", "average_members"):  # without Prefect, which would start a server here
        monkeypatch.setattr(flows, task, getattr(flows, task).fn)
    with handled(caplog.handler, level=logging.INFO):  # Prefect has set up the root logger anew
        result = flows.ensemble_evaluate.fn(
            members=models, dataset="digits", protocol="center", images=60, contributions=True
        )
    said = caplog.messages[-1]
    assert said.startswith("ensemble of 2 on digits, center: top-1 error") and "paper" not in said
    assert [row["network"] for row in tables[0]] == [*models, "ensemble of 2"]
    assert result["without"][0]["top1"] == result["members"][1]["top1"]
    assert flows.evaluate.fn(models=models, dataset="digits", protocol="center", images=60)[0]["images"] == 60
