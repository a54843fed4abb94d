"""The servers of this machine, without the servers: what `down` does with their processes."""

from __future__ import annotations

import json
import signal
import subprocess

import psutil
import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.services.deployments import deploy
from resnet_pipeline.services.local import down
from resnet_pipeline.settings import without_secrets
from resnet_pipeline.workspace import Workspace


@pytest.mark.slow
@pytest.mark.parametrize("address", ["http://me:SECRET@127.0.0.1:9/api", "me:SECRET@nonsense"])
def test_a_server_that_is_away_is_one_line_without_its_password(monkeypatch, address):
    monkeypatch.setenv("PREFECT_API_URL", address)
    with pytest.raises(UserError) as error:
        deploy("local")
    assert without_secrets(address) in str(error.value)
    assert not any(word in str(error.value) for word in ("SECRET", "File", "\n"))


def test_down_takes_a_zombie_for_what_has_ended(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    # the server's parent never asks how it ended, as the first process of a container
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; exec sleep 61"], stdout=subprocess.PIPE) as parent:
        try:
            server = psutil.Process(int(parent.stdout.readline()))
            workspace.services.mkdir(parents=True)
            entry = {"pid": server.pid, "started": server.create_time()}
            (workspace.services / "processes.json").write_text(json.dumps({"mlflow-server": entry}))
            signals: list[signal.Signals] = []
            send = psutil.Process.send_signal
            monkeypatch.setattr(
                psutil.Process, "send_signal", lambda self, number: (signals.append(number), send(self, number))
            )
            down(workspace)
            assert signals == [signal.SIGTERM] and server.status() == psutil.STATUS_ZOMBIE
        finally:
            parent.kill()
