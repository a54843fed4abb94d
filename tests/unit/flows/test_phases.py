"""What is tried again, and what a user has to mend first."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

from flows import shell
from flows.evaluate import average_members, register_average, score, score_members
from flows.stage import stage
from flows.train import register, train
from resnet_pipeline.adapters.mlflow.client import TrackingAwayError, TrackingError
from resnet_pipeline.errors import NoClusterError, RefusedError, UnavailableError, UserError
from resnet_pipeline.logs import at_step, log_context


def tried_again(error: Exception, *, tries: int = 1) -> bool:
    run = TaskRun(task_key="train", dynamic_key="0", run_count=tries)
    answers = {
        phase.retry_condition_fn(phase, run, Failed(data=error))
        for phase in (stage, train, score, score_members, average_members, register, register_average)
        if phase.retries == 3 and phase.retry_condition_fn
    }
    (answer,) = answers
    return bool(answer)


@pytest.mark.parametrize("error", [UserError, RefusedError, TrackingError, ValueError, KeyError])
def test_what_the_user_has_to_mend_and_what_is_a_fault_is_not_tried_again(error):
    assert not tried_again(error("why")) and not tried_again(error("why"), tries=3)


@pytest.mark.parametrize("error", [UnavailableError, TrackingAwayError, ConnectionResetError, TimeoutError])
def test_what_was_away_is_tried_again(error):
    assert tried_again(error("why"))


def test_a_ray_address_without_a_cluster_fails_at_once_unless_one_was_lost():
    assert not tried_again(NoClusterError("no Ray cluster"))
    assert tried_again(NoClusterError("no Ray cluster"), tries=2)


def test_a_worker_s_flow_writes_json_lines_for_a_collector_once(monkeypatch, capsys):
    """Prefect's worker passes its stderr on to the container's; flows on the command line have the console's."""
    monkeypatch.setattr(shell._on_stderr, "stream", sys.stderr)
    flow = shell.logged(shell.logged(lambda: logging.getLogger("flows.train").info("%s begins", "training")))
    flow()
    monkeypatch.setenv("RESNET_PIPELINE_LOG_FORMAT", "json")
    flow()
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "1b4e28ba-2fa1-11d2-883f-0016d3cca427")
    with log_context(run="digits-1", rank=0):
        at_step(5)
        flow()
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["message"], line["run"], line["rank"], line["step"]) == ("training begins", "digits-1", 0, 5)
