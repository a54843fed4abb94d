from __future__ import annotations

import re
from typing import get_args

import pytest

from flows.parameters import ExhibitName
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.exhibits import EXHIBITS, SMALL_STEPS, exhibits_of
from resnet_pipeline.evaluation.paper import ENSEMBLES, PUBLISHED
from resnet_pipeline.evaluation.protocols import PROTOCOLS
from resnet_pipeline.recipes import get_recipe


def test_the_names_that_may_be_typed_are_the_exhibits_and_all():
    assert (*EXHIBITS, "all") == get_args(get_args(ExhibitName)[0])
    assert exhibits_of("all") == list(EXHIBITS.values())
    with pytest.raises(UserError, match="'table7' is no table or figure here; there are section1"):
        exhibits_of("table7")


@pytest.mark.parametrize("exhibit", EXHIBITS.values(), ids=lambda exhibit: exhibit.name)
def test_an_exhibit_consists_of_recipes_and_its_parts_of_its_networks(exhibit):
    assert exhibit.protocol in PROTOCOLS and re.fullmatch(r"(table|figure|section)\d", exhibit.name)
    for row in exhibit.rows:
        assert row.recipe == f"{exhibit.family}/{row.network.partition('-from-')[0]}"
        get_recipe(row.recipe)
    assert set(exhibit.small) <= {row.network for row in exhibit.rows}
    assert bool(exhibit.small) == (exhibit.kind != "complexity")
    drawn = {network for panel in exhibit.panels for network in panel.networks}
    assert drawn == ({row.network for row in exhibit.rows} if exhibit.kind == "curves" else set())
    for network in exhibit.networks("full"):
        assert exhibit.seeds(network)


def test_every_published_error_is_in_a_table_of_its_protocol():
    printed = {
        (row.recipe, row.top1, exhibit.protocol)
        for exhibit in EXHIBITS.values()
        if exhibit.kind == "errors"
        for row in exhibit.rows
    }
    assert {(recipe, error.top1, error.protocol) for recipe, error in PUBLISHED.items()} <= printed


def test_seeds_are_the_paper_s_number_of_runs():
    assert EXHIBITS["table6"].seeds("resnet110") == (0, 1, 2, 3, 4)
    assert EXHIBITS["table6"].seeds("resnet20") == (0,)
    six = [(f"imagenet/{n}", seed) for n in EXHIBITS["table5"].networks("full") for seed in EXHIBITS["table5"].seeds(n)]
    assert six == [(member.recipe, member.seed) for member in ENSEMBLES["ilsvrc2015"]]


def test_the_small_scale_s_iterations_are_stated():
    assert get_recipe("cifar10/resnet20").steps // SMALL_STEPS["cifar10"] == 16_000
    assert get_recipe("imagenet/resnet50").steps // SMALL_STEPS["imagenet"] == 600
