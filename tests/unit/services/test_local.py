"""The servers of this machine, without the servers: what `down` does with their processes."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from resnet_pipeline.errors import UserError
from resnet_pipeline.logs import handled
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


def test_another_ctrl_c_ends_the_wait_and_still_stops_all(tmp_path, caplog):
    workspace = Workspace(tmp_path)
    workspace.services.mkdir(parents=True)
    # the first to be stopped takes no notice of SIGTERM, for which `down` would wait 15 seconds
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    then = "import time; print('ready', flush=True); time.sleep(300)"
    code = {"prefect-server": then, "mlflow-server": deaf + then}
    servers = {n: subprocess.Popen([sys.executable, "-c", c], stdout=subprocess.PIPE) for n, c in code.items()}
    entries = {n: {"pid": p.pid, "started": psutil.Process(p.pid).create_time()} for n, p in servers.items()}
    (workspace.services / "processes.json").write_text(json.dumps(entries))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's processes may ignore it
    try:
        for server in servers.values():
            server.stdout.readline()
        impatient = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        impatient.start()
        with handled(caplog.handler, level=logging.WARNING):
            down(workspace)
        assert "not waiting any longer" in caplog.messages
        assert all(server.poll() is not None for server in servers.values())  # ours, so until asked some may be zombies
        assert not (workspace.services / "processes.json").exists()
    finally:
        signal.signal(signal.SIGINT, before)
        for server in servers.values():
            server.kill()
            server.wait()
            server.stdout.close()
