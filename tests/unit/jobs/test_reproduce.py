from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from resnet_pipeline.adapters.mlflow.descriptions import PARENT
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.confusion import label_places
from resnet_pipeline.evaluation.exhibits import EXHIBITS
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.jobs.analyse import ensemble, score_sources
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.jobs.keep import again, keepable
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.jobs.reproduce import reproduce
from resnet_pipeline.jobs.responses import measure_responses
from resnet_pipeline.jobs.study import Study, plan, study_runs
from resnet_pipeline.jobs.train import train_run
from resnet_pipeline.report.kept import KeptTest, keep, kept_run, read_kept
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from tests.unit.jobs.test_runs import HOLD
from tests.workspaces import with_database

TINY = {"batch": 32, "micro_batch": 32, "bn_images": 64}
LOCAL = Launch(launcher="local")


def tiny(exhibit="figure7", networks=("plain20", "resnet20"), **changes):
    return Study(exhibit=exhibit, cifar10="digits", steps=4, networks=networks, seeds=[0], overrides=TINY, **changes)


def recipes(study):
    return [(run.config.recipe, run.config.seed) for run in study_runs(study) if run.begun_with is None]


def test_the_whole_study_at_full_scale_is_every_network_of_the_paper_with_its_seeds():
    found = recipes(Study(exhibit="all", imagenet="i", cifar10="c"))
    assert len(found) == len(set(found))
    expected = {row.recipe for exhibit in EXHIBITS.values() if exhibit.kind != "complexity" for row in exhibit.rows}
    assert {recipe for recipe, _ in found} == expected
    assert [seed for recipe, seed in found if recipe == "cifar10/resnet110"] == [0, 1, 2, 3, 4]
    assert [seed for recipe, seed in found if recipe == "imagenet/resnet152"] == [0, 1]
    assert all(run.config.steps == 64_000 for run in study_runs(Study(exhibit="table6", cifar10="c")))


def test_a_constructed_network_begins_as_good_as_its_shallower_one(workspace, digits, mlflow_database, tmp_path):
    """Section 1 of the paper: plain-20, with identity mappings to 32 layers, before and after more training."""
    with_database(workspace, mlflow_database)
    networks = ("plain20", "plain32", "plain32-from-plain20")
    study = tiny("section1", networks)
    before = {run.recipe: run.state for run in plan(workspace, study, tmp_path)}
    assert before["cifar10/plain32-from-plain20"] == "new, after plain20"
    found = reproduce(workspace, study, LOCAL, registered=False, output=tmp_path)
    kept = {run.network: run for run in read_kept(tmp_path).runs}
    shallow, deep = kept["plain20"], kept["plain32-from-plain20"]
    assert set(kept) == set(networks) and deep.setting == shallow.setting == kept["plain32"].setting
    assert deep.validation.steps[0] == 0 and deep.validation.values[0] == pytest.approx(shallow.tests[0].top1, abs=1e-3)
    assert f"--initial-weights {shallow.run} --deepen" in deep.command
    tables = (tmp_path / "README.md").read_text()
    assert "| A deeper plain network by construction is as good as the shallower one (section 1, cifar10) |" in tables
    assert "before its first step" in tables and "constructed from plain20" in tables
    again_ = reproduce(workspace, study, LOCAL, registered=False, output=tmp_path)
    assert set(again_.reused) == set(found.runs) and len(found.runs) == 3
    # without its directory it is known by the weights that are kept of the shallow one
    shutil.rmtree(workspace.runs / deep.run)
    assert {run.state for run in plan(workspace, study, tmp_path)} == {"finished", "kept"}


def test_a_constructed_network_alone_says_what_it_begins_with(workspace, digits, mlflow_database, tmp_path):
    with pytest.raises(UserError, match="plain32-from-plain20 begins with the weights of plain20: add that to --netw"):
        reproduce(workspace, tiny("section1", ("plain32-from-plain20",)), LOCAL, output=tmp_path)


def test_a_run_that_several_exhibits_need_is_one_run():
    (resnet50,) = [r for r in study_runs(Study(exhibit="all", imagenet="i")) if r.config.recipe == "imagenet/resnet50"]
    assert resnet50.exhibits == ("table3", "table4", "table5")
    assert resnet50.protocols == ("10-crop", "multi-scale") and not resnet50.responses


def test_the_small_study_of_figure_6_is_plain_and_residual_20_and_56_for_a_quarter_of_the_iterations():
    runs = study_runs(Study(exhibit="figure6", cifar10="c", scale="small"))
    assert [run.config.recipe.partition("/")[2] for run in runs] == ["plain20", "plain56", "resnet20", "resnet56"]
    for run in runs:
        assert (run.config.steps, run.config.schedule.boundaries) == (16_000, (8_000, 12_000)), "48k and 64k of 64k"
        assert (run.config.eval_every, run.config.checkpoint_every, run.config.log_every) == (1_000, 1_000, 50)


def test_the_small_scale_trains_on_a_hundredth_of_imagenet_and_says_so():
    def shares(**options):
        return {
            run.config.train_share for run in study_runs(Study(exhibit="all", imagenet="i", cifar10="c", **options))
        }

    assert shares() == {None} and shares(scale="small") == {0.01, None}
    assert shares(scale="small", share=1) == {None} and shares(share=0.5) == {0.5}


def test_a_share_that_leaves_no_image_of_a_class_is_refused_before_anything_is_trained(workspace):
    with pytest.raises(
        UserError, match=r"train_share 0.001 leaves no image of class '\w+', which has 1\d\d for training"
    ):
        reproduce(workspace, tiny(share=0.001), LOCAL)
    assert not workspace.runs.exists()


def test_a_short_run_on_imagenet_has_fixed_drops_and_saves_often():
    (run,) = study_runs(Study(exhibit="table3", imagenet="i", scale="small", networks=["resnet50"]))
    config = run.config
    assert (config.steps, config.schedule.kind, config.schedule.boundaries) == (600, "step", (150, 300))
    assert config.checkpoint_every == config.eval_every == 37
    (own,) = study_runs(Study(exhibit="table3", imagenet="i", steps=600, networks=["resnet50"], overrides={
        "schedule.kind": "plateau", "schedule.boundaries": []}))  # fmt: skip
    assert own.config.schedule.kind == "plateau", "what was asked for counts"


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (Study(exhibit="table6"), "table6 needs a staged dataset: name it with --cifar10 NAME"),
        (Study(exhibit="table2", cifar10="c"), "table2 needs a staged dataset: name it with --imagenet NAME"),
        (Study(exhibit="all"), "section1 needs a staged dataset"),
        (Study(exhibit="table6", cifar10="c", networks=["resnet1201"]), "'resnet1201'; did you mean 'resnet1202'"),
        (Study(exhibit="table1", networks=["resnet50"]), "table1 trains no network 'resnet50'; it has none"),
        (Study(exhibit="table6", cifar10="c", steps=4, overrides={"optim.rate": 1}), "unknown field optim.rate"),
    ],
)
def test_what_can_t_be_studied_is_one_line(study, message):
    with pytest.raises(UserError, match=message):
        study_runs(study)


def test_a_plan_says_what_exists_and_starts_nothing(workspace, digits, tmp_path):
    study = tiny(networks=["plain20", "resnet20", "resnet56"])
    plain, residual, _ = study_runs(study)
    interrupted = RunDirectory.create(workspace.runs, plain.config, digits.facts)
    asked = iter([False, False, True])
    train(interrupted, digits, LocalContext(stop=lambda: next(asked, True)))
    finished = RunDirectory.create(workspace.runs, residual.config, digits.facts)
    train(finished, digits, LocalContext())
    before = sorted(workspace.runs.iterdir())
    rows = plan(workspace, study, tmp_path)
    assert [(row.recipe, row.state, row.step, row.steps) for row in rows] == [
        ("cifar10/plain20", "interrupted", 3, 4),
        ("cifar10/resnet20", "finished", 4, 4),
        ("cifar10/resnet56", "new", 0, 4),
    ]
    assert sorted(workspace.runs.iterdir()) == before
    rate = finished.result().images_per_second
    # 56 layers take 125,485,696 / 40,551,040 times the multiply-adds of 20 (recipes/costs.json)
    assert rows[1].hours == 0
    assert rows[2].hours == pytest.approx(4 * 32 / (rate * 40_551_040 / 125_485_696) / 3600)
    assert rows[2].basis.startswith("cifar10/resnet20's") and rows[2].gigabytes > 4 * 853_018 / 1e9
    (row,) = plan(workspace, Study(exhibit="table3", imagenet="none", networks=["resnet50"]), tmp_path)
    assert (row.state, row.hours) == ("new, dataset not staged", None)


@pytest.mark.slow
def test_a_study_is_trained_tested_measured_and_kept_and_then_reused(workspace, digits, mlflow_database, caplog):
    with_database(workspace, mlflow_database)
    found = reproduce(workspace, tiny(), LOCAL, registered=False)
    assert len(found.runs) == 2 and found.reused == found.elsewhere == ()
    kept = {run.network: run for run in read_kept(found.page.parent).runs}
    for network in ("plain20", "resnet20"):
        run, directory = kept[network], RunDirectory.open(workspace.runs / kept[network].run)
        result, path = directory.result(), str(directory.path)
        assert (run.state, run.step, run.steps, run.paper_steps) == ("finished", 4, 4, 64_000)
        assert run.result.weights_sha256 == result.weights_sha256
        # the errors are those of the score file, and the curves those of the metrics
        (evaluation,) = evaluate_models(workspace, [path], TestSpec(dataset="digits", protocol="center"))
        assert evaluation.reused
        places = label_places(evaluation.scores.probabilities, evaluation.scores.labels)
        (test,) = run.tests
        assert (test.images, test.wrong1, test.wrong5) == (364, int((places > 0).sum()), int((places > 4).sum()))
        assert np.array_equal(test.wrong_images(), places > 0)
        assert run.validation.values[-1] == pytest.approx(result.validation["top1"], abs=1e-3)
        assert run.train.values[-1] == pytest.approx(result.train_error, abs=1e-3)
        assert run.trained_images == 4 * 32, "there was less than an epoch"
        measured = measure_responses(workspace, [path], "digits", split=None, images=1000)[path]
        assert run.responses == pytest.approx(measured.tolist(), abs=1e-5)
        assert run.commit and run.mlflow_run and str(workspace.root) not in run.command
    # in MLflow the runs are folded under the study's
    tracking = Tracking(workspace)
    shown = {run.info.run_id: run for run in tracking.client.search_runs([tracking.experiment("digits")])}
    parent = tracking.parent(tiny().title, "digits")
    assert shown[parent].info.run_name == tiny().title and shown[parent].info.status == "FINISHED"
    assert {i for i, run in shown.items() if run.data.tags.get(PARENT) == parent} == {
        run.mlflow_run for run in kept.values()
    }
    before = {file: file.read_bytes() for file in found.page.parent.rglob("*.json")}
    more = reproduce(workspace, tiny("table6", ["resnet20", "resnet32"]), LOCAL, registered=False)
    assert len(more.runs) == 2 and more.reused == (kept["resnet20"].run,)
    # Table 6 has the mean of its residual networks beside them
    (mean,) = read_kept(found.page.parent).ensembles
    sources = score_sources(workspace, list(more.runs), TestSpec(dataset="digits", protocol="center"))
    assert mean.tests[0].top1 == pytest.approx(ensemble(sources).ensemble.errors.top1)
    assert {file: file.read_bytes() for file in before} == before, "what was kept stays as it was"


@pytest.mark.slow
def test_images_that_are_tested_and_trained_on_are_counted(digits, workspace, make_run, monkeypatch):
    run = make_run()
    assert keepable(workspace, run, digits).dataset.seen is None
    train, val = digits.splits["train"].checksums, digits.splits["val"].checksums
    monkeypatch.setattr(digits.splits["val"], "checksums", np.concatenate([train[7:12], val[5:]]))
    assert keepable(workspace, run, digits).dataset.seen == 5


def test_a_run_that_fails_or_is_trained_elsewhere_does_not_hold_up_the_others(
    workspace, digits, mlflow_database, caplog
):
    with_database(workspace, mlflow_database)
    study = tiny(networks=["plain20", "plain56", "resnet20"])
    damaged, held, good = (RunDirectory.create(workspace.runs, run.config, digits.facts) for run in study_runs(study))
    damaged.result_file.write_text("{")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(held.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder, caplog.at_level(logging.INFO):  # fmt: skip
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            UserError, match=r"1 of 3 runs failed, the first of them cifar10/plain20 of seed 0: .*damaged"
        ):
            reproduce(workspace, study, LOCAL, registered=False)
        holder.kill()
    assert good.result() is not None and held.result() is None
    assert "cifar10/plain56 of seed 0: trained by another process now" in caplog.text


def test_an_interrupted_run_is_kept_as_one_and_its_end_replaces_it(workspace, digits, tmp_path):
    (wanted,) = study_runs(tiny(networks=["resnet20"]))
    run = RunDirectory.create(workspace.runs, wanted.config, digits.facts)
    asked = iter([False, False, True])
    train(run, digits, LocalContext(stop=lambda: next(asked, True)))
    half = keepable(workspace, run, digits)
    assert (half.state, half.step, half.steps, half.result, half.tests) == ("interrupted", 3, 4, None, ())
    assert half.train.steps == (1, 2, 3)
    keep(tmp_path, half)
    assert kept_run(tmp_path, run.name) == half
    train(run, digits, LocalContext())
    whole = again(keepable(workspace, run, digits), half)
    assert (whole.state, whole.train.steps) == ("finished", (1, 2, 3, 4))


@pytest.mark.slow
def test_what_is_kept_is_not_trained_again_on_a_machine_without_it(workspace, digits, mlflow_database, tmp_path):
    with_database(workspace, mlflow_database)
    study, folder = tiny(networks=["resnet20"]), tmp_path / "kept"
    (wanted,) = study_runs(study)
    run = RunDirectory.create(workspace.runs, wanted.config, digits.facts)
    train(run, digits, LocalContext())
    whole = replace(keepable(workspace, run, digits), responses=(1.0,))
    keep(folder, whole)
    shutil.rmtree(workspace.runs)
    # without its test it is trained again, since nothing else can test it
    assert [row.state for row in plan(workspace, study, folder)] == ["new"]
    tested = replace(whole, tests=(KeptTest.of("center", "val", np.zeros(364, np.int64)),))
    keep(folder, tested)
    assert [row.state for row in plan(workspace, study, folder)] == ["kept"]
    found = reproduce(workspace, study, LOCAL, registered=False, output=folder)
    assert found.reused == found.runs == (run.name,) and not run.path.exists()
    assert read_kept(folder).runs == (tested,)


def test_what_another_machine_kept_of_the_same_weights_stays(workspace, digits):
    (wanted,) = study_runs(tiny(networks=["resnet20"]))
    run = RunDirectory.create(workspace.runs, wanted.config, digits.facts)
    train(run, digits, LocalContext())
    here = keepable(workspace, run, digits)
    test = KeptTest.of("10-crop", "val", np.zeros(364, np.int64))
    there = replace(here, commit="c" * 40, mlflow_run="m", tests=(test,), responses=(1.0,))
    assert again(here, there) == there
    other = replace(there, result=replace(there.result, weights_sha256="0" * 64))
    assert again(here, other) == here, "other weights are another result"


def test_a_damaged_kept_file_is_named(workspace, digits, tmp_path):
    (wanted,) = study_runs(tiny(networks=["resnet20"]))
    run = RunDirectory.create(workspace.runs, wanted.config, digits.facts)
    path = keep(tmp_path, keepable(workspace, run, digits))
    text = path.read_text()
    path.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match=f"{path.name} is of format 2"):
        read_kept(tmp_path)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=f"{path.name} is no JSON"):
        read_kept(tmp_path)
    path.unlink()
    (path.parent / "other.json").write_text(text)
    with pytest.raises(UserError, match=r"other\.json is named otherwise"):
        read_kept(tmp_path)


def test_a_study_s_run_is_the_one_that_the_train_command_makes(workspace, digits, mlflow_database):
    with_database(workspace, mlflow_database)
    (wanted,) = study_runs(tiny(networks=["resnet20"]))
    trained = train_run(workspace, wanted.config, "digits", LOCAL)
    (row,) = plan(workspace, tiny(networks=["resnet20"]), workspace.root)
    assert row.state == "finished" and trained.run.name.startswith("cifar10-resnet20-")
    assert row.command.startswith("resnet-pipeline train cifar10/resnet20 --dataset digits --steps 4")
