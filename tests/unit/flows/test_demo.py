from __future__ import annotations

import pytest

from flows.demo import mlflow_command
from resnet_pipeline.workspace import Workspace


@pytest.mark.parametrize("named", [False, True])
def test_a_store_without_a_server_is_opened_by_a_command(tmp_path, monkeypatch, named):
    address = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if named:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    command = mlflow_command(Workspace(tmp_path))
    assert command.endswith(f"mlflow server --backend-store-uri {address} --port 5000")


def test_a_server_has_its_page_at_its_address(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert mlflow_command(Workspace(tmp_path)) == "http://127.0.0.1:5000"
