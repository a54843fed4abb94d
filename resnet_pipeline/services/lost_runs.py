"""An automation of Prefect's server: a flow run whose process went without a word (lost machine, kill -9) is Crashed.

Prefect's engine sends heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY, which flows/prefect.yaml sets). Prefect's worker
itself marks a run whose process ended while the worker lives.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

NAME = "resnet-pipeline: flow runs without a heartbeat"
WITHIN = timedelta(minutes=5)
"""Ten heartbeats: a server may be away for a while, and whoever runs on is not to be taken for lost."""

_BEAT = "prefect.flow-run.heartbeat"
_ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


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
