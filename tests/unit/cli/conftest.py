from __future__ import annotations

import sys

import pytest

from resnet_pipeline import cli


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that runs a command in this process, and returns its exit status, stdout and stderr."""
    monkeypatch.setenv("RESNET_PIPELINE_ROOT", str(tmp_path / "work"))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["resnet-pipeline", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
            raise SystemExit(0)
        out = capsys.readouterr()
        return int(exit_.value.code or 0), out.out, out.err

    return call
