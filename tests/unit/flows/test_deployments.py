from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
import yaml
from prefect import Flow

from flows.detection import DetectionFamily, DetectionNetwork
from flows.train import Cifar10Family, Cifar10Network, DigitsNetwork, ImageNetFamily, ImageNetNetwork
from resnet_pipeline.evaluation.exhibits import EXHIBITS
from resnet_pipeline.jobs.study import Study, study_runs
from resnet_pipeline.recipes import cifar10, digits, imagenet, recipe_names

DETECTORS = ("voc", "coco", "scenes")
ROOT = Path(__file__).parents[3]
DEPLOYMENTS = yaml.safe_load((ROOT / "flows" / "prefect.yaml").read_text())["deployments"]


def flow_of(deployment: dict[str, object]) -> Flow:  # type: ignore[type-arg]
    module, name = str(deployment["entrypoint"]).rsplit(".", 1)
    found = getattr(import_module(module), name)
    assert isinstance(found, Flow)
    return found


def test_the_networks_of_the_forms_are_the_recipes():
    assert get_args(ImageNetNetwork) == imagenet.NETWORKS
    assert get_args(Cifar10Network) == cifar10.NETWORKS
    assert get_args(DigitsNetwork) == digits.NETWORKS
    families = {name.split("/")[0] for name in recipe_names()}
    assert {
        *get_args(get_args(ImageNetFamily)[0]),
        *get_args(get_args(Cifar10Family)[0]),
        "digits",
        "finetune",
        "ilsvrc-loc",
        *DETECTORS,
    } == families
    assert get_args(get_args(DetectionFamily)[0]) == DETECTORS
    assert set(get_args(get_args(DetectionNetwork)[0])) == {
        n.split("/")[1] for n in recipe_names() if n.split("/")[0] in DETECTORS
    }


def test_the_top_level_file_is_the_package_s():
    assert (ROOT / "prefect.yaml").samefile(ROOT / "flows" / "prefect.yaml")


def test_there_is_one_deployment_per_recipe_and_job():
    names = [f"{flow_of(d).name}/{d['name']}" for d in DEPLOYMENTS]
    assert len(set(names)) == len(names)
    # the families that are not the paper's are a parameter of the same deployments
    expected = {
        n.replace("/", "-train/", 1)
        for n in recipe_names()
        if "-" not in n.split("/")[0] and not n.startswith(("finetune/", *DETECTORS))
    }
    assert expected <= set(names)
    expected |= {f"detection-train/{n.replace('/', '-')}" for n in recipe_names() if n.split("/")[0] in DETECTORS}
    expected |= {n.replace("ilsvrc-loc/", "localization-train/") for n in recipe_names() if n.startswith("ilsvrc-loc/")}
    assert set(names) - expected == {
        "stage-dataset/images", "stage-dataset/digits", "stage-dataset/scenes", "finetune/images",
        "evaluate/center", "evaluate/10-crop", "evaluate/multi-scale",
        "ensemble-evaluate/ilsvrc2015", *(f"reproduce/{name}" for name in (*EXHIBITS, "all")),
    }  # fmt: skip


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: f"{d['entrypoint']}/{d['name']}")
def test_parameters_are_valid_and_every_one_is_described(deployment):
    flow = flow_of(deployment)
    properties = flow.parameters.properties
    given = deployment.get("parameters", {})
    assert set(given) <= set(properties)
    for name, schema in properties.items():
        assert len(schema.get("description", "")) > 20, name
    required = set(flow.parameters.required or [])
    filled = {"source": "x", "reference": "x", "name": "x", "models": ["x"], "dataset": "x"}
    flow.validate_parameters({**{k: v for k, v in filled.items() if k in required}, **given})


@pytest.mark.parametrize("deployment", [d for d in DEPLOYMENTS if "reproduction" in d["tags"]], ids=lambda d: d["name"])
def test_a_reproduction_has_the_datasets_that_its_runs_need(deployment):
    given = deployment["parameters"]
    assert given["exhibit"] == deployment["name"]
    runs = study_runs(Study(**given))
    assert bool(runs) == (deployment["name"] != "table1")
    assert {run.dataset for run in runs} == {given[name] for name in ("imagenet", "cifar10") if name in given}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("network", "resnet51"),
        ("workers", -1),
        ("seed", -1),
        ("protocols", ["11-crop"]),
        ("evaluation_images", 0),
    ],
)
def test_a_bad_parameter_is_named(name, value):
    flow = import_module("flows.train").imagenet_train
    with pytest.raises(Exception, match=name):
        flow.validate_parameters({"dataset": "x", name: value})
