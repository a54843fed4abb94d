"""What this machine has, what the program would use, and whether that works."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from resnet_pipeline.data.dataset import dataset_names
from resnet_pipeline.data.decoding_check import WAYS, Trial, tried
from resnet_pipeline.errors import UserError
from resnet_pipeline.parallel import cores
from resnet_pipeline.services import connections
from resnet_pipeline.services.connections import Finding
from resnet_pipeline.settings import ROOT_VARIABLE, Shown, effective, settings
from resnet_pipeline.workspace import Workspace


def examine(workspace: Workspace) -> list[Finding]:
    """Return what cores, memory, GPUs, decoders, disk and servers there are, and the settings, without passwords.

    What is configured is tried: an image is decoded on each device, each server is asked as its client would, a Ray
    cluster is joined, a bucket written and read. Nothing of it stays. Raises UserError if a setting is not valid.

    Example: ``[finding.what for finding in examine(Workspace.of())]``
    """
    # a process of its own decodes, and imports what it needs for that, while this one imports PyTorch
    with ThreadPoolExecutor(1) as aside:
        by_cpu = aside.submit(tried, "cpu", WAYS[0])
        here: list[Callable[[Workspace], Finding]] = [_cpu, _gpu, partial(_decoder, by_cpu), _disk, _datasets]
        servers: list[Callable[[Workspace], Finding]] = [connections.ray, connections.mlflow, connections.prefect]
        found = [check(workspace) for check in (*here, *servers)] + connections.places(workspace)
    return found + [_setting(shown, workspace) for shown in effective()]


def _setting(shown: Shown, workspace: Workspace) -> Finding:
    if shown.variable == ROOT_VARIABLE and workspace != Workspace.of():
        return _finding(shown.variable, str(workspace.root), "from: --root")
    return _finding(shown.variable, shown.value, f"from: {shown.origin}")


def _cpu(workspace: Workspace) -> Finding:
    import psutil
    import torch

    from resnet_pipeline.device import has_bf16

    count = cores()
    memory = psutil.virtual_memory().total / 2**30
    kind, bf16 = torch.backends.cpu.get_cpu_capability(), has_bf16(torch.device("cpu"))
    state = f"{count} cores, {kind}{', bf16' if bf16 else ''}, {memory:.0f} GiB memory"
    precision = "" if bf16 else "; precision auto is float32: it has no bf16"
    return _finding("processor", state, f"staging with {count} processes{precision}")


def _gpu(workspace: Workspace) -> Finding:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if names:
        return _finding("GPUs", ", ".join(names), f"training with {len(names)} worker(s), a GPU each")
    return _finding("GPUs", "none", "training on the CPU; --workers 2 or more for several processes")


def _decoder(by_cpu: Future[Trial], workspace: Workspace) -> Finding:
    import torch

    try:
        found = f"DALI {version('nvidia-dali-cuda130')}"
    except PackageNotFoundError:
        return _finding("decoder", "DALI is not installed", "torchvision decodes, slower")
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if not gpus:
        trial = by_cpu.result()
        if trial.problem:
            return Finding(
                what="decoder", state=f"{found} decodes no image: {trial.problem}", use="no training", ok=False
            )
        return _finding("decoder", f"{found}, {trial.images_per_second:,.0f} images/s", "it decoded images on the CPU")
    return decoder_of_gpus(found, {gpu: {way: tried(gpu, way) for way in WAYS} for gpu in gpus})


def decoder_of_gpus(dali: str, trials: Mapping[str, Mapping[str, Trial]]) -> Finding:
    """Return what is said of the trials of each GPU's ways to its crops; ``dali`` is its name and version."""
    works = {gpu: {way: trial for way, trial in of.items() if not trial.problem} for gpu, of in trials.items()}
    refusals = [f"{gpu} by {way} {one.problem}" for gpu, of in trials.items() for way, one in of.items() if one.problem]
    refused = f"; not {'; '.join(refusals)}" if refusals else ""
    if without := [gpu for gpu, of in works.items() if not of]:
        use = f"no training on {', '.join(without)}"
        return Finding(what="decoder", state=f"{dali}{refused}", use=use, ok=False)
    paces = [
        f"{gpu} by " + ", ".join(f"{way} {trial.images_per_second:,.0f} images/s" for way, trial in of.items())
        for gpu, of in works.items()
    ]
    setting = settings().gpu_decoding
    chosen = {next(iter(of)) if setting == "auto" else setting for of in works.values()}
    fastest = {max(of, key=lambda way: of[way].images_per_second) for of in works.values()}
    faster = ""
    if len(fastest) == 1 and fastest != chosen:
        faster = f"; RESNET_PIPELINE_GPU_DECODING={fastest.pop()} is faster"
    return _finding("decoder", f"{dali}, {'; '.join(paces)}{refused}", f"by {', '.join(sorted(chosen))}{faster}")


def _disk(workspace: Workspace) -> Finding:
    place = next(p for p in (workspace.root, *workspace.root.parents) if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    return _finding("disk", f"{free:,.0f} GiB free at {place}", f"everything is kept under {workspace.root}")


def _datasets(workspace: Workspace) -> Finding:
    try:
        names = dataset_names(workspace)
    except UserError as error:
        return _finding("datasets", str(error), "no training")
    if names:
        return _finding("datasets", f"{', '.join(names)} in {workspace.data}", "for --dataset")
    return _finding("datasets", "none staged", "resnet-pipeline stage, or demo for the built-in digits")


def _finding(what: str, state: str, use: str) -> Finding:
    return Finding(what=what, state=state, use=use)
