"""What the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(file for folder in (".", "docs", "infra", "examples") for file in (ROOT / folder).glob("*.md"))


def test_contributing_names_files_of_this_tree_and_one_to_follow_each():
    rows = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| a")]
    assert len(rows) >= 8
    for row in rows:
        what, files, example = (cell.strip() for cell in row.strip("|").split("|"))
        for cell in (files, example):
            named = [name for name in re.findall(r"`([^`]+)`", cell) if "/" in name]
            assert named, f"{what}: {cell}"
            assert not [name for name in named if not (ROOT / name).exists()], what


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_to_files(document):
    targets = re.findall(r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"", document.read_text())
    local = [a or b for a, b in targets if not (a or b).startswith(("http", "#"))]
    assert not [target for target in local if not (document.parent / target.partition("#")[0]).exists()]


def test_the_readme_s_tree_is_this_one():
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    lines = [re.match(r"    ( *)([\w.-]+/?)  ", line) for line in tree.splitlines()]
    names = [f"resnet_pipeline/{line[2]}" if line[1] else line[2] for line in lines if line]
    assert len(names) > 30 and not [name for name in names if not (ROOT / name).exists()]
    packages = {path.name for path in (ROOT / "resnet_pipeline").iterdir() if (path / "__init__.py").exists()}
    assert packages == {name.split("/")[1] for name in names if re.fullmatch(r"resnet_pipeline/\w+/", name)}
