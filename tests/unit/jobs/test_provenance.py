"""Where a result says that it comes from."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import resnet_pipeline
from resnet_pipeline.jobs.provenance import git_commit


def test_a_checkout_names_its_own_commit_whatever_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_PIPELINE_REVISION", "f" * 40)
    here = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert (git_commit() or "").removesuffix("-dirty") == here.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize(("revision", "commit"), [("0123abc", "0123abc"), ("", "None")])
def test_an_installed_package_has_the_commit_that_its_image_was_built_from(
    tmp_path: Path, revision: str, commit: str
) -> None:
    """As in the image: the package's files without a checkout around them."""
    installed = tmp_path / "site-packages"
    shutil.copytree(Path(resnet_pipeline.__file__).parent, installed / "resnet_pipeline")
    done = subprocess.run(
        [sys.executable, "-c", "from resnet_pipeline.jobs.provenance import git_commit; print(git_commit())"],
        env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "RESNET_PIPELINE_REVISION": revision},
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.strip() == commit
