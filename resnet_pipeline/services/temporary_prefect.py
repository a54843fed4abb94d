"""Prefect's API for one process alone: what `demo` runs its flows with when no server is set."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from resnet_pipeline.errors import UserError
from resnet_pipeline.services.prefect_api import SECONDS_TO_START, answers
from resnet_pipeline.settings import surroundings, without_secrets
from resnet_pipeline.workspace import Workspace


class TemporaryPrefect:
    """Prefect's API for this process alone, its database in the workspace; a server that is set is used instead.

    It is Prefect's ephemeral API, started by hand: so it starts (12 s the first time, since it makes its database)
    while this process imports and prepares, and this process need not import Prefect's server to start it. Make it
    before Prefect is imported; it is stopped when the process ends.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log = workspace.prefect / "server.log"
        os.environ.setdefault("PREFECT_HOME", str(workspace.prefect))
        os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
        self.page = without_secrets(surroundings().prefect_api_url or "").removesuffix("/api")
        """Where its pages are, or the command that shows them."""
        if self.page:
            return
        self.page = f"PREFECT_HOME={workspace.prefect} {Path(sys.executable).with_name('prefect')} server start"
        workspace.prefect.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        os.environ["PREFECT_API_URL"] = self._api = f"http://127.0.0.1:{port}/api"
        # what links to these flow runs leads to the server that `page` starts, on this database
        os.environ.setdefault("PREFECT_UI_URL", "http://127.0.0.1:4200")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", "--no-services", "--host", "127.0.0.1",
                 "--port", str(port)],
                env={**os.environ, "PREFECT_UI_ENABLED": "false"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process, whose flows then still have an API to tell
            )  # fmt: skip
        # Registered before Prefect's own handlers, so called after them: they deliver what is left of logs and events.
        atexit.register(self.stop)

    @property
    def own(self) -> bool:
        """Whether the server was started here."""
        return self._process is not None

    def wait(self) -> None:
        """Return when the API answers; UserError if it does not."""
        if self._process is None:
            return
        deadline = time.monotonic() + SECONDS_TO_START
        while not answers(f"{self._api}/health"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise UserError(f"Prefect's temporary server does not answer; its log: {self._log}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop what was started here."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
