"""Passwords and keys are found before they are committed; what the tools of the Makefile are called with exists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HOOK = Path(sys.executable).parent / "detect-secrets-hook"
PLANTED = {
    "aws.py": 'KEY = "AKIA' + "QYLPMN5HHHFPZAM2" + '"',
    "key.pem": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "token.yaml": 'token: "'
    + "3f9c2d7be1a40856c1d20e9f8a7b6c5d4e3f2a1b0c9d8e7f"
    + '"',  # as infra/make-secrets.sh makes them
    "address.md": "http://pipeline:" + "hunter2hunter2" + "@mlflow:5000",
}


def scanned(*files: Path) -> subprocess.CompletedProcess[str]:
    command = [HOOK, "--baseline", ROOT / ".secrets.baseline", *files]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_what_looks_like_a_secret_is_refused_and_these_files_are_not(tmp_path: Path) -> None:
    for name, text in PLANTED.items():
        (tmp_path / name).write_text(text + "\n")
    found = scanned(*(tmp_path / name for name in PLANTED))
    assert found.returncode == 1 and all(name in found.stdout for name in PLANTED), found.stdout
    kept = json.loads((ROOT / ".secrets.baseline").read_text())["results"]
    clean = scanned(*map(Path, kept))
    assert clean.returncode == 0, clean.stdout
    assert not [name for name in kept if not name.startswith(("tests/", "resnet_pipeline/", "infra/"))]


def test_every_commit_and_every_check_is_scanned() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (entry,) = (hook["entry"] for hook in hooks if hook["id"] == "detect-secrets")
    makefile = (ROOT / "Makefile").read_text()
    assert f"$(BIN)/{entry.removeprefix('.venv/bin/')} $$(git ls-files)" in makefile
    assert "\ncheck: lint secrets" in makefile
