"""What an earlier version has kept in PostgreSQL is there after the new version's migrations, run as in infra/."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import BINARIES
from tests.integration.postgres import server, sql

pytestmark = [pytest.mark.integration, pytest.mark.soak]

SERVICES = yaml.safe_load((Path(__file__).parents[2] / "infra/compose.yaml").read_text())["services"]
REVISIONS_BACK = 20  # of MLflow's tables: more than a year of versions

OLD_MLFLOW = """
import sys
from pathlib import Path
import mlflow.store.db_migrations as migrations
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from sqlalchemy import create_engine

engine = create_engine(sys.argv[1])
Base.metadata.create_all(engine)
revisions = list(ScriptDirectory(str(Path(migrations.__file__).parent)).walk_revisions())
config = _get_alembic_config(sys.argv[1])
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.upgrade(config, revisions[int(sys.argv[2])].revision)
print(revisions[0].revision)
"""
MLFLOW_ROWS = """
INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)
  VALUES (7, 'digits', 's3://b/7', 'active');
INSERT INTO runs (run_uuid, name, experiment_id, status, start_time, end_time, lifecycle_stage, artifact_uri,
  source_type, source_name, entry_point_name, user_id, source_version)
  VALUES ('r1', 'resnet8', 7, 'FINISHED', 1, 2, 'active', 's3://b/7/r1/artifacts', 'LOCAL', '', '', 'me', '');
INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)
  SELECT 'train/loss', n / 10.0, n, 'r1', n, false FROM generate_series(1, 500) n;
INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
  VALUES ('train/loss', 50, 500, 500, false, 'r1');
INSERT INTO params (key, value, run_uuid) VALUES ('seed', '0', 'r1');
INSERT INTO registered_models (name, creation_time, last_updated_time) VALUES ('digits-resnet8', 1, 1);
INSERT INTO model_versions (name, version, creation_time, last_updated_time, source, run_id, status, current_stage)
  VALUES ('digits-resnet8', 1, 1, 1, 's3://b/m', 'r1', 'READY', 'None');
INSERT INTO registered_model_aliases (name, alias, version) VALUES ('digits-resnet8', 'champion', 1);
"""
READ_MLFLOW = """
import sys
from mlflow import MlflowClient

client = MlflowClient(sys.argv[1], sys.argv[1])
history = client.get_metric_history("r1", "train/loss")
print(client.get_experiment("7").name, client.get_run("r1").data.params, len(history), history[-1].value,
      client.get_model_version_by_alias("digits-resnet8", "champion").run_id)
"""

OLD_PREFECT = "2025_01_01"  # the first revision from this day on


@pytest.fixture(scope="module")
def database() -> Iterator[dict[str, str]]:
    with server() as variables:
        yield variables


def ran(variables: dict[str, str], *command: str, **settings: str) -> str:
    environment = {**os.environ, **variables, **settings}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_mlflow_s_runs_and_versions_outlive_an_upgrade(database: dict[str, str]) -> None:
    address = f"postgresql+psycopg2://{database['PGUSER']}@{database['PGHOST']}:{database['PGPORT']}/mlflow"
    head = ran(database, sys.executable, "-c", OLD_MLFLOW, address, str(REVISIONS_BACK))
    sql(database, "mlflow", MLFLOW_ROWS)
    assert sql(database, "mlflow", "SELECT version_num FROM alembic_version") != head
    program, *words, _ = SERVICES["mlflow-database"]["command"]
    ran(database, str(BINARIES / program), *words, address)
    assert sql(database, "mlflow", "SELECT version_num FROM alembic_version") == head
    found = ran(database, sys.executable, "-c", READ_MLFLOW, address)
    assert found == "digits {'seed': '0'} 500 50.0 r1"


def test_prefect_s_flow_runs_outlive_an_upgrade(database: dict[str, str], tmp_path: Path) -> None:
    """`prefect server database upgrade` runs the migrations that the server runs when it starts."""
    import prefect.server.database._migrations as migrations

    names = sorted(path.stem for path in (Path(migrations.__path__[0]) / "versions/postgresql").glob("20*.py"))
    old, head = next(name for name in names if name >= OLD_PREFECT).split("_")[4], names[-1].split("_")[4]
    address = f"postgresql+asyncpg://{database['PGUSER']}@{database['PGHOST']}:{database['PGPORT']}/prefect"
    settings = {"PREFECT_HOME": str(tmp_path), "PREFECT_SERVER_DATABASE_CONNECTION_URL": address}
    upgrade = [str(BINARIES / "prefect"), "server", "database", "upgrade", "--yes"]
    ran(database, *upgrade, "--revision", old, **settings)
    sql(
        database,
        "prefect",
        "INSERT INTO flow (name) VALUES ('imagenet-train');"
        "INSERT INTO flow_run (flow_id, name, state_type, state_name)"
        " SELECT id, 'run-' || n, 'COMPLETED', 'Completed' FROM flow, generate_series(1, 300) n;"
        "INSERT INTO log (name, level, flow_run_id, message, timestamp)"
        " SELECT 'flows', 20, id, 'a line of ' || name, now() FROM flow_run",
    )
    assert sql(database, "prefect", "SELECT version_num FROM alembic_version") == old != head
    ran(database, *upgrade, **settings)
    assert sql(database, "prefect", "SELECT version_num FROM alembic_version") == head
    kept = "SELECT count(*), min(flow.name), min(state_name) FROM flow_run JOIN flow ON flow.id = flow_id"
    assert sql(database, "prefect", kept) == "300|imagenet-train|Completed"
    assert sql(database, "prefect", "SELECT count(*) FROM log WHERE message LIKE 'a line of run-%'") == "300"
