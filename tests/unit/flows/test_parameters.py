"""The command line and the flows are two doors to the same jobs: they have the same options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, get_args

import pytest
import typer
from prefect import Flow

from flows import parameters
from resnet_pipeline.cli.evaluation import evaluate
from resnet_pipeline.cli.main import app, train
from resnet_pipeline.cli.options import command
from resnet_pipeline.cli.reproduce import reproduce
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.protocols import AVERAGES, PROTOCOLS

ONLY_THE_COMMAND_LINE = {"root", "json_file", "quiet"}
"""What the environment, the returned value and Prefect's log are to a flow."""
RECIPE, ITS_PARTS = {"recipe"}, {"network", "family"}
"""A form offers its networks; ``family/network`` is the recipe."""
PLANNED = {"hardware"}
"""A flow is started where it runs; what it would take elsewhere is asked on the command line."""
A_TEST_AT_THE_END = {"protocols", "evaluation_images"}
"""A training flow tests the network that it registers; on the command line that is `evaluate`."""
OF_REGIONS = {"proposals"}
"""An R-CNN is trained by the flow of its localiser."""
WEIGHTS_AS_OPTIONS = {"weights", "network", "ema"}
"""``--weights FILE --network NAME --ema`` is another way to write the MODEL ``NAME=FILE#ema``."""

PAIRS = [
    ("stage", "stage.stage_dataset", set(), set()),
    ("train", "train.imagenet_train", RECIPE | PLANNED | OF_REGIONS, ITS_PARTS | A_TEST_AT_THE_END),
    ("train", "train.cifar10_train", RECIPE | PLANNED | OF_REGIONS, ITS_PARTS | A_TEST_AT_THE_END),
    ("train", "train.digits_train", RECIPE | PLANNED | OF_REGIONS, {"network"} | A_TEST_AT_THE_END),
    ("train", "detection.detection_train", RECIPE | PLANNED | OF_REGIONS, ITS_PARTS),
    (
        "train",
        "localisation.localization_train",
        RECIPE | PLANNED,
        {"network", "classes"},
    ),
    ("finetune", "finetune.finetune", set(), set()),
    ("evaluate", "evaluate.evaluate", WEIGHTS_AS_OPTIONS | PLANNED, set()),
    ("ensemble", "evaluate.ensemble_evaluate", set(), set()),
    ("demo", "demo.demo_flow", set(), set()),
    ("reproduce", "reproduce.reproduce", set(), set()),
]


def options_of(name: str) -> dict[str, Any]:
    return {option.name: option for option in typer.main.get_command(app).commands[name].params}


def flow_of(entrypoint: str) -> Flow:  # type: ignore[type-arg]
    module, name = entrypoint.split(".")
    found = getattr(import_module(f"flows.{module}"), name)
    assert isinstance(found, Flow)
    return found


@pytest.mark.parametrize(("name", "entrypoint", "only_there", "only_here"), PAIRS)
def test_a_command_and_its_flow_have_the_same_parameters(name, entrypoint, only_there, only_here):
    flow = flow_of(entrypoint)
    options, fields = options_of(name), flow.parameters.properties
    assert set(options) - set(fields) == only_there | (ONLY_THE_COMMAND_LINE & set(options))
    assert set(fields) - set(options) == only_here
    for shared in set(options) & set(fields):
        option, field = options[shared], fields[shared]
        assert option.help == field["description"], shared
        assert_same_type(option, field)
        required = option.required or (name, shared) == ("evaluate", "models")  # --weights stands for a MODEL
        assert required == (shared in (flow.parameters.required or [])), shared
        if not required:
            assert option.default == field.get("default"), shared


def assert_same_type(option: Any, field: dict[str, Any]) -> None:
    typed = option.type_descriptor.annotation
    if option.metavar in ("N|MIN-MAX", "N,N,…", "NAME,NAME,…", "KEY=VALUE"):
        assert typed in (str, list[str])  # read from text: test_what_is_typed_arrives_as_the_flow_s_value
        return
    (kind,) = (kind for kind in field.get("anyOf", [field]) if kind["type"] != "null")
    if kind["type"] == "array":
        assert kind["minItems"] == 1 and option.nargs == -1 and typed == list[str], option.name
    elif "enum" in kind:
        assert option.metavar == "|".join(kind["enum"]), option.name
    else:
        assert typed is {"string": str, "integer": int, "number": float, "boolean": bool}[kind["type"]], option.name
    bounds = (getattr(option, "min", None), getattr(option, "max", None))
    assert bounds == (kind.get("minimum"), kind.get("maximum")), option.name


def typed(function: Callable[..., None], *arguments: str) -> dict[str, Any]:
    """Return what a command's function is called with."""
    found: dict[str, Any] = {}

    @functools.wraps(inspect.unwrap(function))
    def probe(**values: Any) -> None:
        found.update(values)

    alone = typer.Typer()
    alone.command()(command(probe))
    alone(arguments, standalone_mode=False)
    return found


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], {"workers": None, "overrides": None, "seed": None, "registered": True, "registered_as": None}),
        (["--workers", "2"], {"workers": "2"}),
        (["--workers", "1-4"], {"workers": "1-4"}),
        (["--set", "batch=8", "--set", "optim.lr=0.01"], {"overrides": {"batch": 8, "optim.lr": 0.01}}),
        (["--register", "mine"], {"registered_as": "mine"}),
        (["--no-register"], {"registered": False}),
        (["--profile", "--mirror", "m", "--max-failures", "0"], {"profile": True, "mirror": "m", "max_failures": 0}),
    ],
)
def test_what_is_typed_arrives_as_the_flow_s_value(arguments, given):
    flow_of("train.digits_train").validate_parameters({"dataset": "x", **given})
    found = typed(train, "digits/resnet8", "--dataset", "x", *arguments)
    assert {name: found[name] for name in given} == given


def test_scales_are_a_list_and_points_a_choice_at_both_doors():
    given = {"models": ["a", "b"], "dataset": "x", "scales": [224, 256], "voc": None}
    flow_of("evaluate.evaluate").validate_parameters(given)
    found = typed(evaluate, "a", "b", "--dataset", "x", "--scales", "224,256")
    assert {name: found[name] for name in given} == given
    assert typed(evaluate, "a", "--dataset", "x", "--voc", "11")["voc"] == "11"
    with pytest.raises(UserError, match="--voc"):
        typed(evaluate, "a", "--dataset", "x", "--voc", "12")


def test_networks_and_seeds_are_lists_at_both_doors():
    given = {"exhibit": "table6", "networks": ["resnet20", "resnet56"], "seeds": [0, 1], "kept_in": "docs/results"}
    flow_of("reproduce.reproduce").validate_parameters(given)
    options = ("--networks", "resnet20,resnet56", "--seeds", "0,1", "--output", "docs/results")
    found = typed(reproduce, "table6", *options)
    assert {name: found[name] for name in given} == given


def test_the_choices_are_those_of_the_jobs():
    assert get_args(parameters.Protocol) == PROTOCOLS
    assert get_args(get_args(parameters.Average)[0]) == AVERAGES


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--protocol", "centre", "must be one of center, 10-crop, multi-scale, not 'centre'; did you mean 'center'"),
        ("--average", "votes", "must be one of softmax, logits, not 'votes'"),
        ("--scales", "224;256", "must be whole numbers with commas between"),
    ],
)
def test_what_is_no_choice_is_named_in_one_line(option, text, message):
    with pytest.raises(UserError, match=f"{option} {message}"):
        typed(evaluate, "a", "--dataset", "x", option, text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel6"], "exhibit must be one of section1, .*, all, not 'tabel6'; did you mean 'table6'"),
        (["table6", "--seeds", "a"], "--seeds must be whole numbers with commas between, as 0,1, not 'a'"),
        (["table6", "--scale", "tiny"], "--scale must be one of full, small, not 'tiny'"),
    ],
)
def test_what_can_t_be_reproduced_is_named_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message):
        typed(reproduce, *arguments)
