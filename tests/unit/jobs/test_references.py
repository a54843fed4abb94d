"""What a MODEL reference stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_pipeline.adapters.mlflow.registry import ModelVersion, Trained
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs import references
from resnet_pipeline.jobs.references import (
    MlflowRun,
    PublishedWeights,
    RegisteredModel,
    RunFolder,
    WeightsFile,
    expanded,
    fully_expanded,
    load,
    load_all,
    parse,
    parse_registered,
    parse_run,
)
from resnet_pipeline.workspace import Workspace

ID = "0123456789abcdef" * 2


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Return a workspace with folders here and under runs/ that may be taken for something else."""
    space = Workspace(tmp_path / "work")
    for folder in ("here", "both", "lr=0.1", "models:", ID):
        (tmp_path / folder).mkdir()
    for run in ("both", "resnet50", "resnet50@champion", "a=b", "v1.5", "ilsvrc2015"):
        (space.runs / run).mkdir(parents=True)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    return space


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("models:/imagenet-resnet50@champion", None),
        ("models:/x/3", None),
        ("models:/x@y", None),
        ("models:/x=y@z", None),
        ("imagenet-resnet50", "models:/imagenet-resnet50@candidate"),
        ("imagenet-resnet50@champion", "models:/imagenet-resnet50@champion"),
        ("imagenet.v1.5-b_2", "models:/imagenet.v1.5-b_2@candidate"),
        ("a.b@c.d", "models:/a.b@c.d"),
        ("file", "models:/file@candidate"),
        (ID[:-1], f"models:/{ID[:-1]}@candidate"),
        (ID.upper(), f"models:/{ID.upper()}@candidate"),
    ],
)
def test_a_registered_model(workspace, text, uri):
    assert parse(workspace, text) == RegisteredModel(text, uri or text)
    assert parse_registered(workspace, text) == RegisteredModel(text, uri or text)
    with pytest.raises(UserError, match="is no run directory"):
        parse_run(workspace, text)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("here", "here"),
        ("./here", "here"),
        ("work/runs/resnet50", "work/runs/resnet50"),
        ("both", "both"),  # here before runs/
        ("resnet50", "{runs}/resnet50"),  # before a registered name
        ("resnet50@champion", "{runs}/resnet50@champion"),
        ("v1.5", "{runs}/v1.5"),
        ("lr=0.1", "lr=0.1"),  # before a network's file
        ("a=b", "{runs}/a=b"),
        (ID, ID),  # before a run's id
        ("./models:", "models:"),
        ("work/runs/ilsvrc2015", "work/runs/ilsvrc2015"),
    ],
)
def test_a_folder_that_exists(workspace, text, path):
    expected = RunFolder(text, Path(path.format(runs=workspace.runs)))
    assert parse(workspace, text) == parse_run(workspace, text) == expected
    with pytest.raises(UserError, match=r"is no registered model but the folder .*: write models:/NAME@ALIAS"):
        parse_registered(workspace, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"runs:/{ID}", MlflowRun(f"runs:/{ID}", f"runs:/{ID}")),
        ("f" * 32, MlflowRun("f" * 32, f"runs:/{'f' * 32}")),
        ("resnet50=x.pth", WeightsFile("resnet50=x.pth", "resnet50", Path("x.pth"))),
        ("cifar-resnet8=/a/b=c.pth", WeightsFile("cifar-resnet8=/a/b=c.pth", "cifar-resnet8", Path("/a/b=c.pth"))),
        ("resnet50=~/x.pth", WeightsFile("resnet50=~/x.pth", "resnet50", Path.home() / "x.pth")),
        ("resnet50=x.pth#ema", WeightsFile("resnet50=x.pth#ema", "resnet50", Path("x.pth"), ema=True)),
        ("resnet50=here", WeightsFile("resnet50=here", "resnet50", Path("here"))),
        ("torchvision:resnet50", PublishedWeights("torchvision:resnet50")),
        ("torchvision:resnet50=x.pth", PublishedWeights("torchvision:resnet50=x.pth")),
        ("timm:resnet50.a1_in1k", PublishedWeights("timm:resnet50.a1_in1k")),
    ],
)
def test_neither_folder_nor_registered(workspace, text, expected):
    assert parse(workspace, text) == expected
    for only in (parse_registered, parse_run):
        with pytest.raises(UserError, match=f"^{text} is no "):
            only(workspace, text)


@pytest.mark.parametrize("text", ["", "some/where", "a b", "@x", "x@", "=x", "x=", "x@y@z", "s3://bucket/run", "~"])
def test_a_text_that_stands_for_nothing_is_named(workspace, text):
    with pytest.raises(UserError, match=r"run directory.*models:/NAME@ALIAS.*NETWORK=WEIGHTS-FILE") as error:
        parse(workspace, text)
    assert repr(text) in str(error.value) and "\n" not in str(error.value)


def version(name: str, number: int, steps: int, seed: int = 0) -> Trained:
    return Trained(ModelVersion(name, str(number)), steps, seed)


WHOLE = 600_000
REGISTERED = {  # the newest first
    "imagenet/resnet34-b": [version("b", 7, WHOLE)],
    "imagenet/resnet34-c": [version("c", 2, 40), version("c", 1, WHOLE)],  # the newest is partial
    "imagenet/resnet50": [version("r50", 4, WHOLE, seed=3), version("r50", 3, 2 * WHOLE), version("r50", 2, WHOLE)],
    "imagenet/resnet101": [version("else", 1, WHOLE)],  # registered under another name
    "imagenet/resnet152": [
        version("r152", 5, 10, seed=1), version("r152", 4, 300, seed=1), version("r152", 3, WHOLE, seed=2),
        version("r152", 2, WHOLE), version("r152", 1, 2),
    ],
}  # fmt: skip


def test_an_ensemble_s_members_are_whole_runs_of_their_recipes_and_seeds(workspace, monkeypatch):
    monkeypatch.setattr(references, "trained_by", lambda _, recipe: REGISTERED[recipe])
    with pytest.raises(UserError, match=r"--allow-partial") as error:
        expanded(workspace, ["ilsvrc2015"])
    assert str(error.value).startswith(
        "ilsvrc2015 is not complete: imagenet/resnet152 of seed 1 has only models:/r152/4, of 300 of 600,000 steps. "
    )
    chosen = ["models:/b/7", "models:/c/1", "models:/r50/3", "models:/else/1", "models:/r152/2", "models:/r152/4"]
    assert expanded(workspace, ["x", "ilsvrc2015"], allow_partial=True) == ["x", *chosen]
    monkeypatch.setitem(REGISTERED, "imagenet/resnet152", [version("r152", 6, WHOLE, 1), version("r152", 2, WHOLE)])
    assert expanded(workspace, ["ilsvrc2015"]) == [*chosen[:5], "models:/r152/6"]
    monkeypatch.setitem(REGISTERED, "imagenet/resnet34-b", [])
    with pytest.raises(UserError, match=r"not complete: imagenet/resnet34-b of seed 0 is not registered\. Train"):
        expanded(workspace, ["ilsvrc2015"], allow_partial=True)


def test_the_name_of_an_ensemble_is_no_model(workspace):
    assert expanded(workspace, ["x"]) == ["x"]
    with pytest.raises(UserError, match=r"^ilsvrc2015 stands for 6 networks.*imagenet/resnet152 of seed 1; .*@cand"):
        parse(workspace, "ilsvrc2015")
    for only in (parse_registered, parse_run):
        with pytest.raises(UserError, match=r"^ilsvrc2015 is no "):
            only(workspace, "ilsvrc2015")


def test_a_registered_ensemble_is_replaced_by_its_members(workspace, monkeypatch):
    asked = []
    monkeypatch.setattr(
        references, "members_of", lambda _, uri: asked.append(uri) or (["models:/a/1"] if "two" in uri else [])
    )
    assert fully_expanded(workspace, ["two", "one", "here", "x=y"]) == ["models:/a/1", "one", "here", "x=y"]
    assert asked == ["models:/two@candidate", "models:/one@candidate"]


def test_an_error_of_mlflow_names_what_was_written(workspace, monkeypatch):
    def away(*arguments):
        raise UserError("MLflow: not found")

    monkeypatch.setattr(references, "fetched_model", away)
    monkeypatch.setattr(references, "fetch_members", away)
    monkeypatch.setattr(references, "members_of", away)
    for text, said in (
        ("nothing", "^nothing: no run directory of that name: MLflow"),
        ("models:/a/1", "^models:/a/1: MLf"),
    ):
        reference = parse(workspace, text)
        for use in (load, load_all):
            with pytest.raises(UserError, match=said):
                use(workspace, reference)
        with pytest.raises(UserError, match=said):
            fully_expanded(workspace, [text])
