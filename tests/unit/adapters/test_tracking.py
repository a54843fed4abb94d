"""What MLflow is told of a run, and what its answers become."""

from __future__ import annotations

import importlib
import json
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.data import get_source
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine, text

from resnet_pipeline.adapters.mlflow.client import TrackingError, guarded
from resnet_pipeline.adapters.mlflow.descriptions import FLOW_RUN_ID, FLOW_RUN_NAME, FLOW_RUN_PAGE
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
    assert [m.step for m in second.client.get_metric_history(now.run_id, "train/optim/learning_rate")] == [2, 4]
    second.resume(run)
    assert Delivery.of(run).run_id == now.run_id, "one that is there stays"


FLOW = {
    FLOW_RUN_ID: "12ab",
    FLOW_RUN_NAME: "resnet8 · digits",
    FLOW_RUN_PAGE: "http://127.0.0.1:4200/runs/flow-run/12ab",
}


@pytest.fixture
def tracking(tmp_path, mlflow_database):
    return Tracking(with_database(Workspace(tmp_path), mlflow_database))


def test_a_run_says_what_it_is(tracking, make_run, digits):
    run = make_run("steps=4", "seed=3", "optim.lr=0.2")
    for _ in range(2):  # as when it is resumed
        tracking.describe(run, {"steps": 4}, FLOW, digits)
    found = tracking.client.get_run(tracking.run_id(run))
    assert found.info.run_name.startswith("resnet8 · seed 3 · digits · steps=4 · optim.lr=0.2")
    assert tracking.client.get_experiment(found.info.experiment_id).name == "digits (resnet-pipeline)"
    assert found.data.tags.items() >= FLOW.items()
    assert found.data.tags["mlflow.user"] and found.data.tags["mlflow.source.name"].startswith("resnet-pipeline ")
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("digits", digits.fingerprint[:36])
    assert json.loads(given.dataset.profile).items() >= {"train": 1433, "fingerprint": digits.fingerprint}.items()
    assert (Path(get_source(given).load()) / "manifest.json").is_file(), "it can be had from there"


def test_the_description_links_to_the_newest_flow_run_unless_the_user_wrote_one(tracking, make_run, digits):
    run, note = make_run(), "mlflow.note.content"
    for number in ("1", "2"):
        tracking.describe(run, {}, FLOW | {FLOW_RUN_PAGE: f"http://host/{number}"}, digits)
        told = tracking.client.get_run(tracking.run_id(run)).data.tags[note]
        assert told == f"Prefect flow run: [resnet8 · digits](http://host/{number})"
    tracking.client.set_tag(tracking.run_id(run), note, "mine")
    tracking.describe(run, {}, FLOW, digits)
    assert tracking.client.get_run(tracking.run_id(run)).data.tags[note] == "mine"


def test_runs_on_other_datasets_are_another_experiment_and_old_ones_are_found_by_their_id(tracking, make_run):
    old = tracking.client.create_run(tracking.client.create_experiment("resnet-pipeline")).info.run_id
    run = make_run()
    Delivery(uri=tracking.uri, run_id=old).keep(run)
    assert tracking.run_id(run) == old and tracking.page(run).endswith("/#/experiments?workflowType=machine_learning")
    assert tracking.experiment("digits") == tracking.experiment("digits") != tracking.experiment("mine")


def test_two_trainings_that_make_the_experiment_at_once_share_it(tracking, monkeypatch):
    client, get = tracking.client, tracking.client.get_experiment_by_name
    answers = iter([lambda name: client.create_experiment(name) and None, get])
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: next(answers)(name))
    assert tracking.experiment("digits") == get("digits (resnet-pipeline)").experiment_id


@pytest.mark.parametrize("named", [False, True])
def test_a_page_is_an_address_or_the_command_that_serves_it(tmp_path, monkeypatch, make_run, named):
    run = make_run()
    page = "/#/experiments/3/runs/12ab?workflowType=machine_learning"
    if named:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:5000/")
    tracking = Tracking(Workspace(tmp_path))
    Delivery(uri=tracking.address, run_id="12ab", experiment_id="3").keep(run)
    served = f"mlflow server --backend-store-uri sqlite:///{tmp_path}/mlflow/mlflow.db --port 5000"
    if named:
        assert tracking.page(run) == f"http://127.0.0.1:5000{page}"
    else:
        assert tracking.page(run).endswith(f"{served}   # then http://127.0.0.1:5000{page}")


def test_a_deleted_experiment_is_said_with_the_command_that_restores_it(tmp_path):
    tracking = Tracking(Workspace(tmp_path))
    deleted = SimpleNamespace(experiment_id="7", lifecycle_stage="deleted")
    tracking._client = SimpleNamespace(get_experiment_by_name=lambda name: deleted)
    with pytest.raises(UserError, match=r"=sqlite:.*mlflow\.db mlflow experiments restore --experiment-id 7$"):
        tracking.experiment("digits")


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
