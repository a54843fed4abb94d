"""What MLflow's answers become."""

from __future__ import annotations

import importlib
import shutil
import sqlite3
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine, text

from resnet_pipeline.adapters.mlflow.client import TrackingError, guarded
from resnet_pipeline.adapters.mlflow.runs import Delivery, Tracking
from resnet_pipeline.errors import UserError
from resnet_pipeline.training.metrics_log import MetricsLog
from resnet_pipeline.workspace import Workspace
from tests.metrics import training
from tests.workspaces import with_database


def test_a_run_whose_mlflow_is_gone_with_its_machine_gets_a_new_one_and_all_metrics(
    tmp_path, make_run, mlflow_database
):
    run = make_run()
    log = MetricsLog(run.metrics_file)
    log.append(2, training())
    first = Tracking(with_database(Workspace(tmp_path / "first"), mlflow_database))
    first.resume(run)
    assert first.deliver(run) == 1
    gone = Delivery.of(run)
    # another machine: the run's files come from a mirror, and at MLflow's address is a new database
    shutil.copy(mlflow_database, tmp_path / "first" / "mlflow" / "mlflow.db")
    log.append(4, training())
    log.close()
    second = Tracking(Workspace(tmp_path / "first"))
    second.resume(run)
    assert second.deliver(run) == 2
    now = Delivery.of(run)
    assert now.run_id != gone.run_id and now.uri == gone.uri
    assert [m.step for m in second.client.get_metric_history(now.run_id, "learning_rate")] == [2, 4]
    second.resume(run)
    assert Delivery.of(run).run_id == now.run_id, "one that is there stays"


def test_a_deleted_experiment_is_said_with_the_command_that_restores_it(tmp_path):
    tracking = Tracking(Workspace(tmp_path))
    deleted = SimpleNamespace(experiment_id="7", lifecycle_stage="deleted")
    tracking._client = SimpleNamespace(get_experiment_by_name=lambda name: deleted)
    with pytest.raises(UserError, match=r"=sqlite:.*mlflow\.db mlflow experiments restore --experiment-id 7$"):
        tracking.experiment()


@pytest.mark.parametrize("kind", ["run", "experiment"])
def test_what_was_deleted_is_said_with_the_command_that_restores_it(kind):
    def fail() -> None:
        raise MlflowException(f"The {kind} 12ab must be in the 'active' state. Current state is deleted.")

    with pytest.raises(TrackingError, match=f"mlflow {kind}s restore --{kind}-id 12ab$"):
        guarded(fail)


def test_a_database_that_can_t_be_written_is_one_line(tmp_path):
    file = tmp_path / "mlflow.db"
    sqlite3.connect(file).close()
    engine = create_engine(f"sqlite:///file:{file}?mode=ro&uri=true")
    with engine.connect() as connection, pytest.raises(TrackingError) as error:
        guarded(lambda: connection.execute(text("create table t (x)")))
    assert str(error.value) == "MLflow's database can't be written: attempt to write a readonly database"


def test_a_database_whose_driver_is_not_installed_is_one_line():
    with pytest.raises(TrackingError, match="No module named 'nodriver', which MLFLOW_TRACKING_URI needs; install it"):
        guarded(lambda: importlib.import_module("nodriver"))
