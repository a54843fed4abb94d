"""docs/conformance.md names code and tests that exist, and the settings that no other test holds are held here."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from resnet_pipeline.models import build_model, model_names
from resnet_pipeline.recipes import cifar10, get_recipe, imagenet

ROOT = Path(__file__).parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "conformance.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| the paper |")
]
IMAGENET = [f"imagenet/{network}" for network in imagenet.NETWORKS]
CIFAR10 = [f"cifar10/{network}" for network in cifar10.NETWORKS]


@cache
def names_in(file: str) -> set[str]:
    """Return what a file defines at its top, and what its classes do, as Class.name."""
    found = set()

    def add(node: ast.AST, prefix: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(prefix + node.name)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                add(inner, f"{prefix}{node.name}.")
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    for node in ast.parse((ROOT / file).read_text()).body:
        add(node, "")
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_every_row_names_code_and_a_test_that_exist(row):
    assert len(row) == 3, row
    _, code, tests = row
    for cell, folders in ((code, ("resnet_pipeline/",)), (tests, ("tests/",))):
        references = re.findall(r"`([^`]+)`", cell)
        assert references and re.sub(r"`[^`]+`|[, ]", "", cell) == "", "references alone"
        for reference in references:
            file, name = reference.split("::")
            assert file.startswith(folders)
            assert name in names_in(file), reference
            assert folders != ("tests/",) or name.startswith("test_")


def test_each_section_has_its_settings():
    text = (ROOT / "docs" / "conformance.md").read_text()
    sections = re.split(r"^## (?:Section )?", text, flags=re.MULTILINE)[1:]
    rows = {section[:3]: section.count("\n| ") - 1 for section in sections}
    assert (
        list(rows) == ["3.3", "3.4", "4.1", "4.2", "App"]
        and min(rows.values()) >= 5
        and sum(rows.values()) == len(ROWS)
    )


@pytest.mark.parametrize("recipe", [*IMAGENET, *CIFAR10])
def test_the_paper_s_recipes_share_what_section_3_4_states(recipe):
    config = get_recipe(recipe)
    assert (config.optim.momentum, config.optim.weight_decay, config.optim.lr) == (0.9, 0.0001, 0.1)
    assert config.model.mean == "image" and config.augment.flip
    assert (config.optim.label_smoothing, config.optim.ema, config.schedule.warmup) == (0, 0, 0), "nothing of today"


@pytest.mark.parametrize("recipe", IMAGENET)
def test_imagenet_s_recipes_are_section_3_4_s(recipe):
    config = get_recipe(recipe)
    assert (config.schedule.kind, config.schedule.factor, config.steps, config.batch) == ("plateau", 0.1, 600_000, 256)
    augment = config.augment
    assert (augment.kind, augment.crop, augment.shorter_side, augment.color) == ("scale-crop", 224, (256, 480), 0.1)


@pytest.mark.parametrize("recipe", CIFAR10)
def test_cifar10_s_recipes_are_section_4_2_s(recipe):
    config = get_recipe(recipe)
    assert (config.batch, config.batch // config.micro_batch, config.steps) == (128, 2, 64_000)
    assert (config.schedule.kind, config.schedule.boundaries, config.schedule.factor) == ("step", (32_000, 48_000), 0.1)
    assert (config.augment.kind, config.augment.crop, config.augment.pad) == ("pad-crop", 32, 4)
    assert (config.views.crop, config.views.resize) == (32, 32)
    depths = {
        kind: [int(n.removeprefix(kind)) for n in cifar10.NETWORKS if n.startswith(kind)]
        for kind in ("plain", "resnet")
    }
    assert depths == {"plain": [6 * n + 2 for n in (3, 5, 7, 9)], "resnet": [6 * n + 2 for n in (3, 5, 7, 9, 18, 200)]}


@pytest.mark.parametrize("name", [name for name in model_names() if "1202" not in name])
def test_no_network_has_dropout(name):
    with torch.device("meta"):
        network = build_model(name)
    kinds = {type(module) for module in network.modules()}
    assert not [kind for kind in kinds if issubclass(kind, nn.modules.dropout._DropoutNd)]


@pytest.mark.parametrize("depth", ["18", "34", "cifar-20", "cifar-56"])
def test_option_a_costs_no_parameters(depth):
    family, _, layers = depth.rpartition("-")
    prefix = f"{family}-" if family else ""
    options = {} if family else {"shortcut": "A"}
    with torch.device("meta"):
        plain, residual = build_model(f"{prefix}plain{layers}"), build_model(f"{prefix}resnet{layers}", **options)
    assert [p.shape for p in plain.parameters()] == [p.shape for p in residual.parameters()]
