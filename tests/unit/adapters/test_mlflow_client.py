"""MLflow's database in a workspace: whole, or not there."""

from __future__ import annotations

import os

import pytest

from resnet_pipeline.adapters.mlflow.client import make_database
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.workspace import Workspace
from tests.launching import Started

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

KILLED = """
import os, sys
from pathlib import Path
from sqlalchemy import Engine, event
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.workspace import Workspace

def kill(connection, cursor, statement, *rest):
    if statement.lstrip().startswith("INSERT INTO _alembic_tmp_"):
        os._exit(9)

event.listen(Engine, "after_cursor_execute", kill)
Tracking(Workspace(Path(sys.argv[1]))).experiment("digits")
"""


def test_a_kill_while_the_database_is_made_leaves_a_root_that_works(tmp_path):
    assert Started(KILLED, [str(tmp_path)], os.environ).wait(100) == 9
    assert Tracking(Workspace(tmp_path)).experiment("digits") == "1"


def test_a_database_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "mlflow.db").write_text("mine")
    make_database(tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_text() == "mine"
