"""GPUs that several trainings share: a limit of Prefect's server counts them, if it has one of this name."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound

from resnet_pipeline.config import RunConfig
from resnet_pipeline.jobs.launch import Launch
from resnet_pipeline.training.workers import Workers

_log = logging.getLogger(__name__)

LIMIT = "gpus"
"""The name of the global concurrency limit."""


@contextmanager
def reserved(config: RunConfig, launch: Launch) -> Iterator[None]:
    """Inside, the GPUs of a training are taken from the server's limit; until there are enough it waits.

    It takes one for each worker, without a number of workers as many as the batch divides into, and never more than
    there are. A server without the limit counts nothing. If the server is away for minutes it takes the GPUs for free
    again; the training goes on.

    Example: ``with reserved(config, launch): train_run(Workspace.of(), config, "digits", launch)``
    """
    there = _limit()
    if there == 0:
        yield
        return
    workers = 1 if launch.launcher == "local" else Workers.of(launch.workers or config.micro_batches).most
    wanted = min(there, workers + launch.validate_aside)
    _log.info("%s: waiting for %d of the %d GPUs of Prefect's limit %r", config.recipe, wanted, there, LIMIT)
    with concurrency(LIMIT, occupy=wanted, raise_on_lease_renewal_failure=False):
        yield


def _limit() -> int:
    """Return how many GPUs the server counts, 0 if it counts none."""
    try:
        found = get_client(sync_client=True).read_global_concurrency_limit_by_name(LIMIT)
    except ObjectNotFound:
        return 0
    return found.limit if found.active else 0
