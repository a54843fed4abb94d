from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from resnet_pipeline.config_io import parse_assignments, with_overrides
from resnet_pipeline.models import build_model
from resnet_pipeline.parallel import cores
from resnet_pipeline.recipes import get_recipe, recipe_names
from resnet_pipeline.settings import effective


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "up",
        "down",
        "deploy",
        "stage",
        "train",
        "evaluate",
        "ensemble",
        "analyse",
        "responses",
        "submission",
        "check-submission",
        "promote",
        "predict",
        "explore",
        "report",
        "recipes",
        "finetune",
        "export",
        "doctor",
    ],
)
def test_every_command_has_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0 and "Usage" in out and len(out.splitlines()) > 5


def test_recipes_lists_depth_parameters_cost_and_the_paper_s_error(run, tmp_path):
    code, out, _ = run("recipes", "--json", str(tmp_path / "r.json"))
    rows = {row["recipe"]: row for row in json.loads((tmp_path / "r.json").read_text())}
    assert code == 0 and set(rows) == set(recipe_names())
    assert "8.0 times VGG-19's" in out, "the paper's claim, computed"
    row = rows["imagenet/resnet152"]
    assert (row["depth"], row["top1"], row["top5"]) == (152, 21.43, 5.71)
    assert row["parameters"] == pytest.approx(60.19e6, rel=1e-3)
    assert row["multiply_adds"] == pytest.approx(11.28e9, rel=1e-3)


@pytest.mark.parametrize("arguments", [["recipes"], ["recipes", "digits/resnet8"]], ids=" ".join)
def test_json_on_stdout_is_alone_there(run, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, err = run(*arguments, "--json", str(tmp_path / "file.json"))
    alone = run(*arguments, "--json", "-")
    assert alone == (0, (tmp_path / "file.json").read_text(), err + out)
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_full_disk_below_the_output_is_one_line(run, monkeypatch):
    for arguments in (["recipes", "digits/resnet8"], ["recipes", "--json", "-"]):
        with open("/dev/full", "w") as full:  # noqa: PTH123
            monkeypatch.setattr(sys, "stdout", full)
            code, _, err = run(*arguments)
        assert code == 2 and err.splitlines()[-1].startswith("resnet-pipeline: there is no room for a file or the out")


@pytest.mark.parametrize("path", ["~/images", "~nobody-of-that-name/images"])
def test_a_user_without_a_home_is_told_what_to_set(run, monkeypatch, path):
    def unknown(user: object) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    code, _, err = run("stage", "--source", path, "--name", "x")
    assert code == 2 and err.splitlines() == [
        "resnet-pipeline: this user has no home directory, which MLflow needs, and ~ in paths: set HOME to a folder"
    ]


def test_json_to_stdout_by_another_name_is_alone_there_too(run, tmp_path):
    (tmp_path / "out").touch()
    with (tmp_path / "out").open("a") as file:
        saved = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            _, out, err = run("recipes", "digits/resnet8", "--json", "/dev/stdout")
        finally:
            os.dup2(saved, 1)
            os.close(saved)
    assert json.loads(out)["recipe"] == "digits/resnet8" and "digits/resnet8: 8 layers" in err


@pytest.mark.slow
def test_doctor_says_what_is_here(run, tmp_path):
    code, out, _ = run("doctor", "--root", str(tmp_path / "other"), "--json", str(tmp_path / "d.json"))
    assert code == 0 and f"{cores()} cores" in out
    found = {f["what"]: f for f in json.loads((tmp_path / "d.json").read_text())}
    looked_at = {"processor", "GPUs", "decoder", "disk", "datasets", "Ray", "MLflow", "Prefect"}
    assert looked_at | {setting.variable for setting in effective()} == set(found)
    assert "it decoded images" in found["decoder"]["use"] and all(f["ok"] for f in found.values())
    root = found["RESNET_PIPELINE_ROOT"]
    assert (root["state"], root["use"]) == (str(tmp_path / "other"), "from: --root")
    assert found["RESNET_PIPELINE_TIMEOUT"]["use"] == "from: default"


@pytest.mark.parametrize(
    "command",
    ["stage --source builtin:digits --name x", "train digits/resnet8 --dataset x", "evaluate a --dataset x",
     "ensemble a b --dataset x", "report --dataset x", "export cifar-resnet8=x.pth x.onnx"],
)  # fmt: skip
def test_a_root_that_can_t_be_written_is_one_line(run, tmp_path, command):
    (tmp_path / "file").touch()
    code, _, err = run(*command.split(), "--root", str(tmp_path / "file" / "root"))
    assert code == 2 and err.startswith("resnet-pipeline: ") and len(err.splitlines()) == 1


@pytest.mark.slow
def test_doctor_shows_no_password(run, monkeypatch, tmp_path):
    servers = {"MLFLOW_TRACKING_URI": "http://me:hidden@127.0.0.1:9",
               "PREFECT_API_URL": "http://me:hidden@127.0.0.1:9/api",
               "RAY_ADDRESS": "ray://me:hidden@127.0.0.1:9",
               "AWS_ENDPOINT_URL": "http://me:hidden@127.0.0.1:9"}  # fmt: skip
    for name, value in servers.items():
        monkeypatch.setenv(name, value)
    code, out, err = run("doctor", "--json", str(tmp_path / "d.json"))
    written = (tmp_path / "d.json").read_text()
    assert code == 2 and "can't all be used; see above: Ray, MLflow, Prefect" in err
    assert written.count("does NOT answer") == 3
    assert "hidden" not in out + err + written
    assert all(name in written for name in servers)


def test_a_setting_that_is_not_valid_is_one_line(run, monkeypatch):
    monkeypatch.setenv("RESNET_PIPELINE_CACHE_GB", "ten")
    code, _, err = run("doctor")
    assert (code, err) == (2, "resnet-pipeline: RESNET_PIPELINE_CACHE_GB=ten must be a positive number of gigabytes\n")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["stage", "--source", "/nowhere", "--name", "x"], "/nowhere"),
        (["stage", "--source", "builtin:digits", "--name", "../x"], "../x"),
        (["stage", "--source", "builtin:digits", "--name", "x", "--holdout", "100"], "--holdout 100"),
        (["stage", "--source", "s3://x", "--name", "x"], "s3://x"),
        (["train", "digits/resnet21", "--dataset", "digits"], "digits/resnet20"),
        (["train", "digits/resnet20", "--dataset", "missing"], "missing"),
        (["train", "digits/resnet20", "--dataset", "digits", "--set", "optim.lr=x"], "optim.lr"),
        (["train", "digits/resnet20", "--dataset", "digits", "--set", "=3"], "'=3' is not of the form"),
        (
            ["train", "digits/resnet20", "--dataset", "digits", "--set", "recipe=imagenet/resnet152"],
            "field recipe says",
        ),
        (["evaluate", "x", "--dataset", "missing"], "missing"),
        (["report", "--dataset", "missing"], "missing"),
        (["explore", "x", "--dataset", "missing"], "missing"),
        (["promote", "x", "--top", "3"], "--top must be 1 or 5"),
        (["predict", "x", "/nowhere", "--output", "o.txt"], "o.txt must end in"),
        (["deploy"], "PREFECT_API_URL"),
        (["recipes", "--json", "/dev/null/r.json"], "/dev/null/r.json"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, arguments, named, tmp_path):
    code, _, err = run(*arguments)
    assert code == 2
    assert err.startswith("resnet-pipeline: ") and len(err.strip().splitlines()) == 1
    assert named in err
    assert not (tmp_path / "work" / "runs").exists()


@pytest.mark.parametrize("option", ["--seed", "--epoch"])
def test_a_number_beyond_64_bits_is_refused(run, option):
    code, _, err = run("data", "show", "digits", option, str(2**64))
    assert code == 2 and f"'{option}'" in err and "Traceback" not in err


def test_what_is_read_or_written_too_is_not_replaced(run, tmp_path):
    table, weights = tmp_path / "p.csv", tmp_path / "w.safetensors"
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for path in (table, weights, run_folder / "config.json", run_folder / "weights.safetensors"):
        path.write_text("mine")
    (tmp_path / "link.csv").symlink_to(table)
    for arguments, said in (
        (["predict", "x", str(tmp_path), "--output", str(table), "--json", str(tmp_path / "link.csv")], "also --json"),
        (["predict", "x", str(table), "--output", str(tmp_path / "link.csv")], "p.csv, which is to be read"),
        (["export", f"resnet50={weights}#ema", str(weights)], "w.safetensors, which is to be read"),
        (["export", str(run_folder), str(run_folder / "weights.safetensors")], "weights.safetensors, which is to be"),
        (["ensemble", str(table), "--json", str(table)], "p.csv, which is to be read"),
        (["report", "--output", "/dev/null/r.html"], "/dev/null/r.html can't be written"),
    ):
        code, _, err = run(*arguments)
        assert code == 2 and said in err and err.count("\n") == 1, err
    assert {path.read_text() for path in (table, weights, run_folder / "weights.safetensors")} == {"mine"}


def test_without_standard_output_nothing_is_begun_and_other_files_are_not_taken_for_it(tmp_path):
    def call(closed: str) -> subprocess.CompletedProcess[str]:
        command = f"{sys.executable} -m resnet_pipeline.cli recipes digits/resnet8 --json {tmp_path}/r.json {closed}"
        return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)

    found = call(">&-")
    assert (found.returncode, found.stderr.count("\n")) == (2, 1) and "standard output is closed" in found.stderr
    assert not (tmp_path / "r.json").exists()
    found = call("<&- 2>&-")
    assert found.returncode == 0 and "optim.lr" in found.stdout and (tmp_path / "r.json").exists()


@pytest.mark.slow
def test_staging_evaluation_and_ensemble_write_json(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # however long the path of a temporary folder is
    code, out, err = run(
        "stage", "--source", "builtin:digits", "--name", "digits", "--json", str(tmp_path / "s.json"), "--workers", "1"
    )
    assert code == 0, err
    staged = json.loads((tmp_path / "s.json").read_text())
    assert staged["samples"] == {"train": 1433, "val": 364} and staged["refused"] == []
    code, out, _ = run("stage", "--source", "builtin:digits", "--name", "digits")
    assert code == 0 and out.startswith("dataset digits: staged before") and out.count("\n") == 1
    code, _, err = run("stage", "--source", "builtin:digits", "--name", "digits", "--max-shorter-side", "20")
    assert code == 2 and "other options" in err and "--replace" in err
    for depth in (8, 14):
        torch.manual_seed(depth)
        torch.save(build_model(f"cifar-resnet{depth}").state_dict(), tmp_path / f"{depth}.pth")
    models = [f"cifar-resnet{depth}={tmp_path / f'{depth}.pth'}" for depth in (8, 14)]
    code, out, err = run(
        "ensemble", *models, "--dataset", "digits", "--protocol", "center", "--json", str(tmp_path / "e.json")
    )
    assert code == 0, err
    result = json.loads((tmp_path / "e.json").read_text())
    assert [m["images"] for m in result["models"]] == [364, 364] and result["ensemble"]["images"] == 364
    assert not any(m["reused"] for m in result["models"])
    assert "top-5 error %" in out and "center: cifar-resnet8=8.pth, cifar-resnet14=14.pth  364/364 images" in err
    command = ("evaluate", models[0], "--dataset", "digits")
    code, out, err = run(*command, "--json", str(tmp_path / "v.json"))
    assert err == "center: scores of cifar-resnet8=8.pth kept from before\n"
    assert run(*command, "--quiet") == (0, out, "")
    again = json.loads((tmp_path / "v.json").read_text())["models"][0]
    assert again["reused"] and again["top1"] == result["models"][0]["top1"]


@pytest.mark.slow
def test_published_weights_are_tested_and_exported(run, tmp_path):
    import torchvision
    from safetensors.torch import load_file

    theirs = torchvision.models.resnet18(weights=None, num_classes=10)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    run("stage", "--source", "builtin:digits", "--name", "digits", "--workers", "1")
    model = f"resnet18={tmp_path / 'w.pth'}"
    code, _, err = run("evaluate", model, "--dataset", "digits", "--images", "4", "--json", str(tmp_path / "e.json"))
    assert code == 0, err
    assert json.loads((tmp_path / "e.json").read_text())["models"][0]["images"] == 4
    code, _, err = run("export", model, str(tmp_path / "x.safetensors"))
    assert code == 0, err
    exported, state = load_file(tmp_path / "x.safetensors"), theirs.state_dict()
    assert all(torch.equal(exported[name], state[name]) for name in state if "num_batches" not in name)
    code, _, err = run("export", model, str(tmp_path / "x.bin"))
    assert code == 2 and ".onnx" in err and not (tmp_path / "x.bin").exists()


def in_a_process_of_its_own(*arguments: str, **environment: str) -> str:
    """Run the command line; return what it printed, and fail if it imported any of the slow libraries."""
    code = """
import sys
from resnet_pipeline.cli import main
sys.argv[0] = "resnet-pipeline"
try:
    main()
finally:
    slow = {"torch", "torchvision", "mlflow", "prefect", "ray", "nvidia.dali"} & set(sys.modules)
    assert not slow, slow
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "COLUMNS": "80", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["train", "--help"], ["recipes"], ["recipes", "imagenet/resnet152"]],
    ids=" ".join,
)
def test_what_should_answer_at_once_imports_no_slow_library(arguments):
    lines = in_a_process_of_its_own(*arguments).splitlines()
    assert lines and max(map(len, lines)) <= 80


def test_the_version_is_the_package_s(run):
    assert run("--version")[:2] == (0, f"resnet-pipeline {version('resnet-pipeline')}\n")


def test_a_recipe_is_printed_with_all_that_set_takes_and_what_it_means(run, tmp_path):
    code, out, _ = run("recipes", "cifar10/resnet110", "--json", str(tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and found["recipe"] == "cifar10/resnet110" and found["source"].startswith("Table 6")
    assert "schedule.warmup_lr = 0.01\n    Constant rate at the start" in out
    config = get_recipe("cifar10/resnet110")
    for field in found["fields"]:
        assert field["text"] in " ".join(out.split())
        typed = parse_assignments([f"{field['field']}={json.dumps(field['value'])}"])
        assert with_overrides(config, typed) == config, "as --set takes it"


def test_an_unknown_recipe_has_a_neighbour(run):
    code, _, err = run("recipes", "cifar10/resnet101")
    assert code == 2 and "did you mean 'cifar10/resnet110'" in err


def completed(*words: str) -> list[str]:
    environment = {
        "_RESNET_PIPELINE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["resnet-pipeline", *words]),
        "COMP_CWORD": str(len(words)),
    }
    return in_a_process_of_its_own(**environment).split()


@pytest.mark.slow
def test_the_shell_completes_recipes_and_staged_datasets(tmp_path, monkeypatch):
    assert completed("train", "cifar10-fast/resnet4") == ["cifar10-fast/resnet44"]
    assert completed("recipes", "digits/") == [name for name in recipe_names() if name.startswith("digits/")]
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(tmp_path / "empty"))
    assert completed("data", "verify", "") == []
    for name in ("mine", "mine-too", "other"):
        folder = tmp_path / "work" / "datasets" / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    assert completed("data", "verify", "--root", str(tmp_path / "work"), "mi") == ["mine", "mine-too"]
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(tmp_path / "work"))
    assert completed("evaluate", "x", "--dataset", "o") == ["other"]


@pytest.mark.parametrize(
    ("rank", "options", "said"),
    [
        ("0", ["digits/resnt8"], "resnet-pipeline: unknown recipe 'digits/resnt8'"),
        ("1", ["digits/resnt8"], ""),
        ("1", ["digits/resnet8", "--set", "stps=3"], ""),
        ("1", ["digits/resnet8", "--register", "a/b"], ""),
        ("1", ["digits/resnet8", "--profile", "--steps", "2"], ""),
    ],
)
def test_what_torchrun_s_processes_all_find_is_said_by_rank_0(run, monkeypatch, rank, options, said):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = run("train", *options, "--dataset", "digits", "--launcher", "torchrun")
    assert (code, out) == (2, "") and err.startswith(said) and bool(err) == bool(said)
