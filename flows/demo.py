"""The demo: the real flows on the built-in digits, one after the other, under one parent flow and one Ray."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from prefect import flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.evaluate import ensemble_evaluate
from flows.parameters import DemoWorkers, Protocol
from flows.shell import form, logged
from flows.stage import stage_dataset
from flows.train import DigitsNetwork, digits_train
from resnet_pipeline.adapters.mlflow.runs import Tracking
from resnet_pipeline.adapters.ray.train import standing_workers
from resnet_pipeline.jobs.report import report_on_runs
from resnet_pipeline.jobs.stage import DIGITS
from resnet_pipeline.jobs.train import is_finished
from resnet_pipeline.recipes import get_recipe
from resnet_pipeline.records import JsonObject
from resnet_pipeline.report.content import ReportData
from resnet_pipeline.services.temporary_prefect import TemporaryPrefect
from resnet_pipeline.settings import surroundings
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

DATASET = "digits"
PROTOCOLS: list[Protocol] = ["center", "10-crop"]
ENSEMBLE = "ensemble-digits"
_NETWORKS: tuple[DigitsNetwork, ...] = get_args(DigitsNetwork)


@flow(name="demo")
@logged
@form
def demo_flow(workers: DemoWorkers = 2) -> list[JsonObject]:
    """Stage the digits, train and register three networks, test each alone and all together, register that too."""
    _log.info("1/3  Staging the built-in digits")
    stage_dataset(source=DIGITS, name=DATASET)
    _log.info("2/3  Training %d networks with %d workers", len(_NETWORKS), workers)
    results = [
        digits_train(network=network, dataset=DATASET, workers=workers, protocols=PROTOCOLS) for network in _NETWORKS
    ]
    _log.info("3/3  The ensemble, from the kept scores")
    runs = [result["run"] for result in results]
    for protocol in PROTOCOLS:
        ensemble_evaluate(members=runs, dataset=DATASET, protocol=protocol, registered_as=ENSEMBLE)
    return results


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What the demo came to: its report, the networks that were trained and reused, and where to look at them.

    ``mlflow`` and ``prefect`` are the commands that open their pages, or the pages' addresses if servers are set.
    """

    report: ReportData
    path: Path
    networks: int
    reused: int
    seconds: float
    mlflow: str
    prefect: str


def run_demo(workspace: Workspace, prefect: TemporaryPrefect, *, workers: int) -> Demo:
    """Run the demo flow and write the report; return what it came to."""
    start = time.monotonic()
    # The workers start beside Prefect and the staging, if there is anything to train. On a cluster staging and testing
    # are Ray's work too, and standing workers would have its CPUs.
    trained = all(is_finished(workspace, get_recipe(f"digits/{network}"), DATASET) for network in _NETWORKS)
    none = trained or surroundings().ray_address is not None
    standing = contextlib.nullcontext() if none else standing_workers(workspace, workers)
    # Nobody looks at the heartbeats of a temporary API, and each flow run would wait a second for the end of its own.
    silent = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if prefect.own else {})
    with standing, silent:
        prefect.wait()
        results = demo_flow(workers=workers)
    runs = [result["run"] for result in results]
    path, report = report_on_runs(workspace, DATASET, runs=runs, protocols=PROTOCOLS)
    return Demo(
        report=report,
        path=path,
        networks=len(results),
        reused=sum(result["reused"] for result in results),
        seconds=time.monotonic() - start,
        mlflow=Tracking(workspace).page_of_dataset(DATASET),
        prefect=prefect.page,
    )
