"""The program's log: silent by default, with run, rank and step on every line, as text or as JSON."""

from __future__ import annotations

import ast
import io
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.logs import PACKAGES, JsonLines, at_step, configured, handled, log_context
from resnet_pipeline.parallel import start_thread

_log = logging.getLogger("resnet_pipeline.a.module")
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def lines():
    """Return a handler that writes JSON lines, and what reads them."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    with handled(handler, level=logging.INFO):
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_json_line_has_time_level_logger_message_run_rank_and_step(lines):
    _log.warning("outside of %s", "a run")
    with log_context(run="r", rank=3):
        _log.info("before the first step")
        at_step(7)
        _log.info("two\nlines")
    _log.info("after it")
    found = lines()
    fields = [(v["level"], v["logger"], v["message"], v["run"], v["rank"], v["step"]) for v in found]
    name = "resnet_pipeline.a.module"
    assert fields == [
        ("warning", name, "outside of a run", None, None, None),
        ("info", name, "before the first step", "r", 3, None),
        ("info", name, "two\nlines", "r", 3, 7),
        ("info", name, "after it", None, None, None),
    ]
    assert all(v["time"].endswith("+00:00") for v in found)


def test_a_thread_that_a_run_started_says_its_rank_and_its_present_step(lines):
    go = threading.Event()

    def work() -> None:
        go.wait(60)
        _log.info("from a thread")

    with log_context(run="r", rank=1):
        thread = start_thread(work, name="t")
        at_step(5)
        go.set()
        thread.join()
    (line,) = lines()
    assert (line["run"], line["rank"], line["step"]) == ("r", 1, 5)


def test_a_json_line_is_one_line_whatever_the_message_holds(lines):
    message = "a\x1b[31m\x9b\x85b\u2028c\udcff ü"
    _log.info("%s", message)
    (line,) = lines()
    assert line["message"] == message


def test_an_exception_is_in_its_line(lines):
    try:
        raise ValueError("why")
    except ValueError:
        _log.exception("that failed")
    (line,) = lines()
    assert line["message"] == "that failed" and "ValueError: why" in line["exception"]


def test_the_setting_decides_between_text_and_json(monkeypatch, capsys):
    with configured():
        _log.info("said")
        with log_context(rank=0):
            at_step(12)
            _log.warning("also said")
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert out == "" and first == "said" and second.endswith("rank 0 step 12  warning: also said")
    monkeypatch.setenv("RESNET_PIPELINE_LOG_FORMAT", "json")
    with configured():
        _log.info("said")
    assert json.loads(capsys.readouterr().err)["message"] == "said"
    monkeypatch.setenv("RESNET_PIPELINE_LOG_FORMAT", "xml")
    with pytest.raises(UserError, match="RESNET_PIPELINE_LOG_FORMAT must be text or json, not 'xml'"), configured():
        pass


def test_nothing_stays_set_up(capsys):
    logger = logging.getLogger("resnet_pipeline")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with configured(level=logging.WARNING):
        _log.info("not said")
        _log.warning("said")
    assert capsys.readouterr().err == "warning: said\n"
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_handler_keeps_its_level_beside_one_that_hears_more(capsys, lines):
    with configured(level=logging.WARNING):  # as --quiet does, while a flow's log takes all
        _log.info("for the flow alone")
    assert capsys.readouterr().err == "" and [v["message"] for v in lines()] == ["for the flow alone"]


@pytest.mark.slow
def test_the_library_is_silent_until_logging_is_set_up(workspace):
    script = (
        "import sys\n"
        "from resnet_pipeline.jobs.data import verify_dataset\n"
        "from resnet_pipeline.workspace import Workspace\n"
        "assert verify_dataset(Workspace.of(sys.argv[1]), 'digits').good\n"
    )
    command = [sys.executable, "-c", script, str(workspace.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_nothing_takes_what_it_is_to_speak_with():
    """No function or record has a ``say`` or a ``quiet``: they log, and whoever wants to listen sets up logging."""
    for path in (path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")):
        if "cli" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.arg if isinstance(node, (ast.arg, ast.keyword)) else getattr(node, "id", None)
            assert name not in ("say", "quiet"), f"{path}:{node.lineno}"
