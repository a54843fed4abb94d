"""Examples in docstrings that stand after ``>>>`` are what Python answers; others begin with ``Example:``."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "resnet_pipeline"
WITH_EXAMPLES = sorted(file for file in PACKAGE.rglob("*.py") if ">>> " in file.read_text())


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("name", [module_name(file) for file in WITH_EXAMPLES])
def test_examples_are_what_python_answers(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed, "the difference is in the output"
