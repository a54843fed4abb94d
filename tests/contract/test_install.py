"""What `make install` says before it starts, and while it runs."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def install():
    spec = importlib.util.spec_from_file_location("install", ROOT / "scripts" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_keeps_it_from_starting_here(install, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 13 * 10**9))
    assert install.problem(tmp_path / "venv") is None


def test_a_full_disk_is_named_before_anything_is_made(install, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 3 * 10**9))
    assert f"under {tmp_path}, and 3.0 are free" in install.problem(tmp_path / "venv")
    (tmp_path / "venv").mkdir()
    assert install.problem(tmp_path / "venv") is None  # what is there already need not fit again


def test_an_old_python_is_told_what_to_type(install, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert "make PYTHON=python3.11" in install.problem(tmp_path / "venv")


def test_a_python_without_venv_is_told_the_package(tmp_path):
    # as Debian's python3 without python3-venv: ensurepip can't be imported
    (tmp_path / "ensurepip.py").write_text("raise ImportError('No module named ensurepip')")
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "install.py"), str(tmp_path / "venv")],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "apt install python3-venv" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_silent_minute_is_not_silent(install, capsys):
    def lines():
        yield "Collecting torch\n"
        yield "WARNING: something of no concern\n"
        time.sleep(0.3)
        yield "ERROR: no space\n"

    last = list(install.follow(lines(), 0.05))
    assert last[0] == "Collecting torch\n" and last[-1] == "ERROR: no space\n"
    said = capsys.readouterr().out
    assert "0:00  Collecting torch" in said and "WARNING" not in said


def test_the_oldest_python_is_pyproject_s(install):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={install.OLDEST[0]}.{install.OLDEST[1]}"
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert named == ["3.11", "3.12", "3.13", "3.14"]
