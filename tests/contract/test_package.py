"""The package as `pip install .` makes it: everything that runs is in it, nothing depends on the checkout's place."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel from a copy of the sources and unpack it, as pip does."""
    folder = tmp_path_factory.mktemp("package")
    ignored = {".git", ".venv", "work", "build", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
    source = folder / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ignored and not path.name.endswith(".egg-info"):
            (source / path.name).symlink_to(path)
    # copies, since setuptools writes beside them
    for name in ("resnet_pipeline", "flows"):
        (source / name).unlink()
        subprocess.run(["cp", "-r", str(ROOT / name), str(source / name)], check=True)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder


def run(folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_files_that_are_no_python_are_in_it(installed):
    for name in ("flows/prefect.yaml", "resnet_pipeline/report/page.html.j2", "resnet_pipeline/py.typed"):
        assert (installed / "site" / name).read_bytes() == (ROOT / name).read_bytes()
    assert not (installed / "site" / "tests").exists()


@pytest.mark.slow
def test_a_report_is_written_and_flows_are_found_away_from_the_checkout(installed):
    code = f"""
import sys
from pathlib import Path
import resnet_pipeline, flows.train
from resnet_pipeline.report.page import write_report
assert Path(resnet_pipeline.__file__).is_relative_to(Path("site").resolve()), resnet_pipeline.__file__
assert Path(flows.train.__file__).is_relative_to(Path("site").resolve())
sys.path.append({str(ROOT)!r})
from tests.sample_report import sample_report
print(write_report(sample_report(), Path("r.html")))
"""
    assert "r.html" in run(installed, code)
