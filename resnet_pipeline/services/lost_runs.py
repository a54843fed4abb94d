"""Flow runs whose process went without a word (lost machine, kill -9).

An automation of Prefect's server makes them Crashed: Prefect's engine sends heartbeats
(PREFECT_FLOWS_HEARTBEAT_FREQUENCY, which flows/prefect.yaml sets). Prefect's worker itself marks a run whose process
ended while the worker lives. On a cluster a worker that starts takes up what the one before it, of the same name, has
left:

    python -m resnet_pipeline.services.lost_runs WORKER
"""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

from resnet_pipeline.errors import UserError
from resnet_pipeline.logs import configured
from resnet_pipeline.services.prefect_api import prefect_client
from resnet_pipeline.settings import surroundings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

_log = logging.getLogger(__name__)

NAME = "resnet-pipeline: flow runs without a heartbeat"
WITHIN = timedelta(minutes=5)
"""Ten heartbeats: a server may be away for a while, and whoever runs on is not to be taken for lost."""

_BEAT = "prefect.flow-run.heartbeat"
_ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "AwaitingRetry")}
_LABEL = "prefect.worker.name"  # which Prefect's worker gives the flow runs that it starts


def mark_lost_runs(client: SyncPrefectClient, *, within: timedelta = WITHIN) -> None:
    """Install the automation at a server, or bring the one that is there up to date.

    Whether someone has paused it stays as it is.

    Example: ``with prefect_client(url) as client: mark_lost_runs(client)``
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    text = f"No heartbeat for {within.total_seconds():.0f} s: the process is gone. The same parameters resume it."
    wanted = AutomationCore(
        name=NAME,
        description="Installed by `resnet-pipeline deploy`.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            after={_BEAT},
            expect={_BEAT, *_ENDS},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message=text, force=False)],
    )
    found = client.read_automations_by_name(NAME)
    if not found:
        client.create_automation(wanted)
    elif _said(found[0]) != _said(wanted):  # what it waits for now is forgotten when it is written
        wanted.enabled = found[0].enabled
        client.update_automation(found[0].id, wanted)


def _said(automation: AutomationCore) -> object:
    return automation.trigger.model_dump(exclude={"id"}), [action.model_dump() for action in automation.actions]


def schedule_left_runs(client: SyncPrefectClient, worker: str) -> list[str]:
    """Schedule again the flow runs that a worker of this name has left running, and return their names.

    To be called before one starts: there is one worker of a name at a time, and its flow runs' processes end with it.

    Example: ``with prefect_client(url) as client: schedule_left_runs(client, "cluster")``
    """
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import FlowRun, StateType
    from prefect.states import AwaitingRetry

    under_way = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
    state, found = FlowRunFilterState(type=under_way), list[FlowRun]()
    while page := client.read_flow_runs(flow_run_filter=FlowRunFilter(state=state), offset=len(found)):
        found += page  # the server gives 200 at a time
    left = [run for run in found if run.labels.get(_LABEL) == worker and run.deployment_id]
    for run in left:
        client.set_flow_run_state(run.id, AwaitingRetry(message="its worker was started again"), force=True)
    return [run.name for run in left]


def main(worker: str) -> None:
    """Do that at the server of PREFECT_API_URL, and say in the log what was left; SystemExit if it does not answer.

    Example: ``main("cluster")``
    """
    with configured():
        try:
            with prefect_client(surroundings().prefect_api_url or "") as client:
                for name in schedule_left_runs(client, worker):
                    _log.info("the flow run %s was left running, and is scheduled again", name)
        except UserError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1])
