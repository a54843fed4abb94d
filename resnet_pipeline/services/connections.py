"""Whether what is configured answers: MLflow, Prefect, Ray and buckets, each asked with its own client and login."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from resnet_pipeline.adapters.mlflow.client import connect, guarded, tracking_uri
from resnet_pipeline.errors import UserError
from resnet_pipeline.services.prefect_api import SECONDS_TO_ANSWER, prefect_client, reach
from resnet_pipeline.settings import cleaned, settings, surroundings, variable, without_secrets
from resnet_pipeline.storage import storage_at
from resnet_pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at: its state, what follows from it, and whether it can be used as configured."""

    what: str
    state: str
    use: str
    ok: bool = True


def mlflow(workspace: Workspace) -> Finding:
    """Ask MLflow for an experiment; a database that is not there yet is not made."""
    uri = tracking_uri(workspace)
    if uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///"))
        configured = (
            "MLFLOW_TRACKING_URI is not set" if not surroundings().mlflow_tracking_uri else without_secrets(uri)
        )
        if not file.exists():
            return Finding(what="MLflow", state=configured, use=f"{uri} (made on first use)")
        try:
            _ask_mlflow(uri)
        except UserError as error:
            return Finding(what="MLflow", state=f"{uri} can't be used: {error}", use="no runs, no models", ok=False)
        return Finding(what="MLflow", state=configured, use=uri)
    try:
        server = _ask_mlflow(uri)
    except UserError as error:
        return _refused("MLflow", uri, error, "runs are kept here, and sent when it answers; no models")
    return Finding(
        what="MLflow",
        state=f"{without_secrets(uri)} answers ({_versions('mlflow', server)})",
        use="runs and models go there",
    )


def prefect(workspace: Workspace) -> Finding:
    """Ask Prefect's API for a flow, as who PREFECT_API_KEY or PREFECT_API_AUTH_STRING says."""
    url = surroundings().prefect_api_url
    if not url:
        use = "demo uses Prefect's temporary API; `up` starts a server"
        return Finding(what="Prefect", state="PREFECT_API_URL is not set", use=use)
    try:
        server = _ask_prefect(url)
    except UserError as error:
        return _refused("Prefect", url, error, "no deployments")
    state = f"{without_secrets(url)} answers ({_versions('prefect', server)})"
    return Finding(what="Prefect", state=state, use="deployments run there")


def ray(workspace: Workspace) -> Finding:
    """Join the cluster that RAY_ADDRESS names, and compare each node's versions with those here."""
    address = surroundings().ray_address
    if not address:
        use = "training starts Ray on this machine and stops it again"
        return Finding(what="Ray", state="RAY_ADDRESS is not set", use=use)
    from resnet_pipeline.adapters.ray.versions import differences, nodes_and_versions

    shown = f"RAY_ADDRESS={without_secrets(address)}"
    try:
        here, nodes = nodes_and_versions()
    except UserError as error:
        return Finding(what="Ray", state=f"{shown} does NOT answer", use=str(error), ok=False)
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    state = f"{shown} answers: {len(nodes)} node(s), {cpus} CPUs, {gpus} GPUs"
    if found := differences(here, nodes):
        return Finding(what="Ray", state=state, use=f"other versions there: {'; '.join(found)}", ok=False)
    return Finding(what="Ray", state=state, use="training joins that cluster; its versions are those here")


def places(workspace: Workspace) -> list[Finding]:
    """Write, read and delete a file in each bucket or folder that a setting names for datasets or runs."""
    now = settings()
    found = {variable(field): getattr(now, field) for field in ("data", "runs", "mirror")}
    return [_place(f"{name}: files", str(place)) for name, place in found.items() if place is not None]


def _place(what: str, url: str) -> Finding:
    name, content = f".doctor-{uuid.uuid4().hex}", uuid.uuid4().bytes
    try:
        storage = storage_at(url)
        if not url.startswith("s3://") and not Path(storage.url).is_dir():
            return Finding(what=what, state=f"{url} is not there", use="made on first use")
        storage.write(name, content)
        try:
            same = storage.read(name) == content
        finally:
            storage.delete(name)
    except UserError as error:
        return Finding(what=what, state=f"{without_secrets(url)} can't be used", use=str(error), ok=False)
    if not same:
        return Finding(
            what=what, state=f"{without_secrets(url)}: another content was read than written", use="", ok=False
        )
    return Finding(what=what, state=f"{without_secrets(url)} is written and read", use="")


def _refused(what: str, url: str, error: UserError, use: str) -> Finding:
    return Finding(what=what, state=f"{without_secrets(url)} does NOT answer: {cleaned(str(error))}", use=use, ok=False)


def _versions(package: str, server: str) -> str:
    here = version(package)
    return f"version {server}, as here" if server == here else f"version {server}, here {here}"


def _ask_mlflow(uri: str) -> str:
    """Return the version of an MLflow server, an empty text for a database; UserError if it refuses this client."""
    client = guarded(lambda: connect(uri))
    if not uri.startswith("http"):
        guarded(lambda: client.search_experiments(max_results=1))
        return ""
    reach(f"{uri.rstrip('/')}/health")
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request_safe

    guarded(lambda: client.search_experiments(max_results=1))
    login = get_default_host_creds(uri)
    answer = guarded(lambda: http_request_safe(login, "/version", "GET", timeout=SECONDS_TO_ANSWER))
    return str(answer.text).strip()


def _ask_prefect(url: str) -> str:
    """Return the version of a Prefect server; UserError if it refuses this client."""
    with prefect_client(url) as client:
        client.read_flows(limit=1)
        return str(client.api_version())
