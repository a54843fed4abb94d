"""Prefect's deployments: each flow of prefect.yaml registered with a server, under a work pool."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import yaml

from resnet_pipeline.errors import UserError
from resnet_pipeline.services.lost_runs import mark_lost_runs
from resnet_pipeline.services.prefect_api import prefect_client
from resnet_pipeline.settings import surroundings

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

POOL = "local"
"""The work pool of this machine's own worker."""
_PAGE = 200  # the most that Prefect's API returns at once
_DEFAULT_QUEUE = "default"  # the one that every pool has


def deploy(pool: str, *, trainings_at_once: int | None = None) -> int:
    """Register every deployment of prefect.yaml with the server of PREFECT_API_URL; return how many there are.

    Trainings have a queue of their own in the pool, which runs ``trainings_at_once`` of them (None: no limit) and lets
    the others wait. Done again, it changes what this version of the program has changed, and nothing else: pool and
    queue stay as they are, and so do a deployment's schedules, pause and limit (``prefect deploy`` resets them). Raises
    UserError if the server does not answer or refuses.

    The server is told what to do with flow runs whose process is lost, too (``services.lost_runs``).

    Example: ``deploy("local")``
    """
    url = surroundings().prefect_api_url
    if not url:
        raise UserError("PREFECT_API_URL is not set: name the Prefect server's API, or use `resnet-pipeline up`")
    entries = deployments()
    with prefect_client(url) as client:
        _make_pool(client, pool)
        queues = {entry["work_pool"].get("work_queue_name", _DEFAULT_QUEUE) for entry in entries} - {_DEFAULT_QUEUE}
        for queue in queues:
            _make_queue(client, pool, queue, trainings_at_once)
        # every request costs the server tens of milliseconds, and there are dozens of deployments of a few flows
        known = {(deployment.flow_id, deployment.name): deployment for deployment in _registered(client)}
        flows: dict[str, UUID] = {}
        for entry in entries:
            _register(client, pool, entry, known, flows)
        mark_lost_runs(client)
    return len(entries)


def deployments() -> list[dict[str, Any]]:
    """Return the deployments of prefect.yaml; their flows are imported, which takes seconds.

    Example: ``[entry["name"] for entry in deployments()]``
    """
    entries: list[dict[str, Any]] = yaml.safe_load((resources.files("flows") / "prefect.yaml").read_text())[
        "deployments"
    ]
    for entry in entries:
        import_module(_split(entry)[0])
    return entries


def _split(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Return the module and the name of a deployment's flow."""
    module, _, function = entry["entrypoint"].rpartition(".")
    return module, function


def _make_pool(client: SyncPrefectClient, pool: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with contextlib.suppress(ObjectAlreadyExists):  # its limit, its pause and its template may be someone's
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))


def _make_queue(client: SyncPrefectClient, pool: str, queue: str, limit: int | None) -> None:
    from prefect.exceptions import ObjectAlreadyExists

    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_queue(queue, work_pool_name=pool, concurrency_limit=limit)


def _registered(client: SyncPrefectClient) -> Iterator[DeploymentResponse]:
    """Yield the deployments that the server has, of whatever flow."""
    offset = 0
    while page := client.read_deployments(limit=_PAGE, offset=offset):
        yield from page
        offset += len(page)


def _register(
    client: SyncPrefectClient,
    pool: str,
    entry: dict[str, Any],
    known: Mapping[tuple[UUID, str], DeploymentResponse],
    flows: dict[str, UUID],
) -> None:
    """Register one deployment, or change what of it has changed; ``flows`` are the ids of flows, by name."""
    from prefect.client.schemas.actions import DeploymentUpdate

    module, function = _split(entry)
    flow = cast("Flow[..., Any]", getattr(import_module(module), function))
    wanted: dict[str, Any] = {
        "entrypoint": entry["entrypoint"],
        "version": flow.version,
        "description": entry.get("description") or flow.description,
        "parameters": entry.get("parameters", {}),
        "tags": entry.get("tags", []),
        "job_variables": entry["work_pool"].get("job_variables", {}),
        "parameter_openapi_schema": flow.parameters.model_dump(exclude_unset=True),
        # relative paths among the parameters are those of whoever deploys
        "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(Path.cwd())}}],
        "work_pool_name": pool,
        "work_queue_name": entry["work_pool"].get("work_queue_name", _DEFAULT_QUEUE),
        "enforce_parameter_schema": True,
    }
    if flow.name not in flows:
        flows[flow.name] = client.create_flow(flow)  # or, if it is there, its id
    deployment = known.get((flows[flow.name], entry["name"]))
    if deployment is None:
        client.create_deployment(flows[flow.name], entry["name"], **wanted)
    else:
        changed = {key: value for key, value in wanted.items() if getattr(deployment, key) != value}
        if changed:
            client.update_deployment(deployment.id, DeploymentUpdate(**changed))
