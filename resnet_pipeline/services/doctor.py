"""What this machine has, and what the program would use."""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.adapters.mlflow.client import tracking_uri
from resnet_pipeline.data.dataset import dataset_names
from resnet_pipeline.errors import UserError
from resnet_pipeline.settings import ROOT_VARIABLE, Shown, basic_authorization, effective, surroundings, without_secrets
from resnet_pipeline.workspace import Workspace


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its state, and what follows from it."""

    what: str
    state: str
    use: str


def examine(workspace: Workspace) -> list[Finding]:
    """Return what cores, memory, GPUs, decoder, disk and servers there are, and the settings, without passwords.

    Nothing is started or changed. Raises UserError if a setting is not valid.

    Example: ``[finding.what for finding in examine(Workspace.of())]``
    """
    checks: list[Callable[[Workspace], Finding]] = [_cpu, _gpu, _decoder, _disk, _datasets, _ray, _mlflow, _prefect]
    found = [check(workspace) for check in checks]
    return found + [_setting(shown, workspace) for shown in effective()]


def _setting(shown: Shown, workspace: Workspace) -> Finding:
    if shown.variable == ROOT_VARIABLE and workspace != Workspace.of():
        return Finding(shown.variable, str(workspace.root), "from: --root")
    return Finding(shown.variable, shown.value, f"from: {shown.origin}")


def _cpu(workspace: Workspace) -> Finding:
    import psutil
    import torch

    from resnet_pipeline.device import has_bf16

    cores = os.cpu_count() or 1
    memory = psutil.virtual_memory().total / 2**30
    kind, bf16 = torch.backends.cpu.get_cpu_capability(), has_bf16(torch.device("cpu"))
    state = f"{cores} cores, {kind}{', bf16' if bf16 else ''}, {memory:.0f} GiB memory"
    precision = "" if bf16 else "; precision auto is float32: it has no bf16"
    return Finding("processor", state, f"staging with {cores} processes{precision}")


def _gpu(workspace: Workspace) -> Finding:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if names:
        return Finding("GPUs", ", ".join(names), f"training with {len(names)} worker(s), a GPU each")
    return Finding("GPUs", "none", "training on the CPU; --workers 2 or more for several processes")


def _decoder(workspace: Workspace) -> Finding:
    import torch

    try:
        import nvidia.dali as dali
    except ImportError as error:
        return Finding("decoder", f"DALI can't be imported ({error})", "torchvision, slower")
    mode = "mixed (JPEGs on the GPU)" if torch.cuda.is_available() else "cpu"
    return Finding("decoder", f"DALI {dali.__version__}", f"mode {mode}")


def _disk(workspace: Workspace) -> Finding:
    place = next(p for p in (workspace.root, *workspace.root.parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    return Finding("disk", f"{free:,.0f} GiB free at {place}", f"everything is kept under {workspace.root}")


def _datasets(workspace: Workspace) -> Finding:
    try:
        names = dataset_names(workspace)
    except UserError as error:
        return Finding("datasets", str(error), "no training")
    if names:
        return Finding("datasets", f"{', '.join(names)} in {workspace.data}", "for --dataset")
    return Finding("datasets", "none staged", "resnet-pipeline stage, or demo for the built-in digits")


def _ray(workspace: Workspace) -> Finding:
    address = surroundings().ray_address
    if address:
        return Finding("Ray", f"RAY_ADDRESS={without_secrets(address)}", "training joins that cluster")
    return Finding("Ray", "RAY_ADDRESS is not set", "training starts Ray on this machine and stops it again")


def _mlflow(workspace: Workspace) -> Finding:
    uri = tracking_uri(workspace)
    if uri.startswith("sqlite:///"):
        exists = Path(uri.removeprefix("sqlite:///")).exists()
        return Finding("MLflow", "MLFLOW_TRACKING_URI is not set", f"{uri}{'' if exists else ' (made on first use)'}")
    return Finding("MLflow", _server(uri), "runs and models go there")


def _prefect(workspace: Workspace) -> Finding:
    url = surroundings().prefect_api_url
    if url:
        return Finding("Prefect", _server(url), "deployments run there")
    return Finding("Prefect", "PREFECT_API_URL is not set", "demo uses Prefect's ephemeral API; `up` starts a server")


def _server(address: str) -> str:
    return f"{without_secrets(address)} {_answer(address.rstrip('/') + '/health')}"


def _answer(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        return "(not asked: no http address)"
    try:
        request = urllib.request.Request(without_secrets(url))
        for name, value in basic_authorization(url).items():
            request.add_unredirected_header(name, value)
        with urllib.request.urlopen(request, timeout=5) as response:
            return f"answers ({response.status})"
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        return f"does NOT answer ({getattr(error, 'reason', error)})"
