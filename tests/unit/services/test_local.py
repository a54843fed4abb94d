"""The servers of this machine, without the servers: what `down` does with their processes."""

from __future__ import annotations

import json
import signal
import subprocess

import psutil

from resnet_pipeline.services.local import down
from resnet_pipeline.workspace import Workspace


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
