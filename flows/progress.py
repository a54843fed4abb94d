"""Progress on Prefect's pages: one artifact for each bar, from its beginning to its end.

The work never waits for Prefect. A thread looks at the bar every few seconds and tells the server; one that is away is
asked again, and hears then what it has missed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext
from prefect.utilities.context import get_task_and_flow_run_ids

from flows.artifacts import key_of
from resnet_pipeline.parallel import start_thread
from resnet_pipeline.progress import Bar, displayed_also_on

_log = logging.getLogger(__name__)

SECONDS_BETWEEN_UPDATES = 15.0
_SECONDS_BEFORE_THE_FIRST = 1.0  # what is over by then is told once
_SECONDS_FOR_THE_LAST = 10.0


class ProgressArtifacts:
    """Bars as progress artifacts of the flow run, and task run, in which they begin.

    ``seconds`` are those between two updates of an artifact.
    """

    def __init__(self, seconds: float = SECONDS_BETWEEN_UPDATES) -> None:
        self._seconds = seconds
        self._ends: dict[Bar, threading.Event] = {}
        self._threads: list[threading.Thread] = []

    def begin(self, bar: Bar) -> None:
        """Start the thread that tells the server."""
        ended = self._ends[bar] = threading.Event()
        self._threads = [one for one in self._threads if one.is_alive()]
        self._threads.append(start_thread(lambda: _tell(bar, ended, self._seconds), name="progress-artifact"))

    def update(self, bar: Bar) -> None:
        """Do nothing: the thread looks."""

    def end(self, bar: Bar) -> None:
        """Let the thread tell the last state, too; nobody waits for that."""
        self._ends.pop(bar).set()

    def wait(self, seconds: float) -> None:
        """Wait until the server knows the last states; if it is away, for so many seconds."""
        for thread in self._threads:
            thread.join(seconds)
            if thread.is_alive():  # the others would wait for it, too
                return


_artifacts = ProgressArtifacts()


@contextmanager
def shown_on_the_flow_run() -> Iterator[None]:
    """Inside, bars are progress artifacts, too; at the end the server knows the last states, unless it is away.

    Outside of a flow run, where nobody would see them, there are none: a client would start a server of its own.

    Example: ``with shown_on_the_flow_run(): train_run(Workspace.of(), config, "digits")``
    """
    if not FlowRunContext.get():
        yield
        return
    with displayed_also_on(_artifacts):
        try:
            yield
        finally:
            _artifacts.wait(_SECONDS_FOR_THE_LAST)


def _tell(bar: Bar, ended: threading.Event, every: float) -> None:
    """Tell the server of a bar every so many seconds, and once more after its end."""
    client = get_client(sync_client=True)
    artifact: UUID | None = None
    told, away, over = "", False, ended.wait(_SECONDS_BEFORE_THE_FIRST)
    while True:
        try:
            if bar.line() != told:
                artifact, told = _tell_now(client, bar, artifact), bar.line()
            away = False
        except Exception as error:  # whatever it is: it is not the work's concern
            if not away:
                _log.info("Prefect's page can't show how far %s is: %s", bar.title, type(error).__name__)
            away = True
        if over:
            return
        over = ended.wait(every)


def _tell_now(client: SyncPrefectClient, bar: Bar, artifact: UUID | None) -> UUID:
    """Make a bar's artifact, or bring it up to date; return its id."""
    percent, line = 100 * min(1.0, bar.reached / bar.total) if bar.total else 0.0, bar.line()
    if artifact is not None:
        client.update_artifact(artifact, ArtifactUpdate(data=percent, description=line))
        return artifact
    task_run, flow_run = get_task_and_flow_run_ids()
    made = client.create_artifact(
        ArtifactCreate(
            key=key_of("progress", bar.title),
            type="progress",
            data=percent,
            description=line,
            task_run_id=task_run,
            flow_run_id=flow_run,
        )
    )
    return made.id
