"""Flow runs of a real Prefect server, over its HTTP API."""

from __future__ import annotations

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Api:
    """A server's API by its address."""

    address: str
    login: str = ""
    """``user:password``, if the server wants one."""

    def ask(self, path: str, data: Any = None) -> Any:
        """Return what the server answers; with ``data`` it is posted. Asks again, as Prefect's client does, if busy."""
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(self.address + path, data=body, headers={"Content-Type": "application/json"})
        if self.login:
            request.add_header("Authorization", f"Basic {base64.b64encode(self.login.encode()).decode()}")
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                # 503: its SQLite is locked by another request
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def start(self, deployment: str, variables: Mapping[str, str] | None = None, /, **parameters: Any) -> FlowRun:
        """Start a deployment, its own parameters changed by these; ``variables`` are set for its process."""
        found = self.ask(f"/deployments/name/{deployment}")
        given: dict[str, Any] = {"parameters": {**found["parameters"], **parameters}}
        if variables:
            given["job_variables"] = {"env": dict(variables)}
        return FlowRun(self, self.ask(f"/deployments/{found['id']}/create_flow_run", given)["id"])

    def last(self, flow: str) -> FlowRun:
        """Return the last flow run of a flow."""
        asked = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_DESC", "limit": 1}
        (found,) = self.ask("/flow_runs/filter", asked)
        return FlowRun(self, found["id"])


@dataclass(frozen=True)
class FlowRun:
    """A flow run by its id."""

    api: Api
    id: str

    def state(self) -> tuple[str, str]:
        """Return type and message."""
        state = self.api.ask(f"/flow_runs/{self.id}")["state"]
        return state["type"], state["message"] or ""

    def name(self) -> str:
        """Return its name."""
        return str(self.api.ask(f"/flow_runs/{self.id}")["name"])

    def started(self) -> str:
        """Return when it began to run, as a text that sorts; AssertionError if it has not."""
        start = self.api.ask(f"/flow_runs/{self.id}")["start_time"]
        assert start is not None, self.state()
        return str(start)

    def log(self) -> list[str]:
        """Return the lines of its log and its tasks'."""
        asked = {"logs": {"flow_run_id": {"any_": [self.id]}}, "sort": "TIMESTAMP_ASC"}
        return [line["message"] for line in self.api.ask("/logs/filter", asked)]

    def tasks(self) -> list[str]:
        """Return the names of its task runs."""
        asked = {"flow_runs": {"id": {"any_": [self.id]}}}
        return [str(one["name"]) for one in self.api.ask("/task_runs/filter", asked)]

    def artifacts(self) -> list[dict[str, Any]]:
        """Return its artifacts and its tasks'."""
        asked = {"artifacts": {"flow_run_id": {"any_": [self.id]}}}
        return list(self.api.ask("/artifacts/filter", asked))

    def ended(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for its end; return type and message of its state."""
        return self.until(lambda: self.state()[0] in ENDED, timeout).state()

    def until(self, true: Callable[[], object], timeout: float = 120) -> FlowRun:
        """Wait for something; AssertionError with the log if it takes too long."""
        deadline = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < deadline, "\n".join([str(self.state()), *self.log()])
            time.sleep(0.1)
        return self
