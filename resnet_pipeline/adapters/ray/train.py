"""Ray Train: the training loop on the workers of a cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from resnet_pipeline.adapters.ray.cluster import Resources, check_workers
from resnet_pipeline.adapters.ray.elastic import trainer_class
from resnet_pipeline.data.dataset import open_dataset_at
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.files import replacing
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.base import Storage
from resnet_pipeline.training.attempt import TakenOverError
from resnet_pipeline.training.distributed import TIMEOUT_VARIABLE, collective_timeout
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

WORKER_VARIABLES = {"MALLOC_ARENA_MAX": "1"}
"""Ray Train computes in a thread of its worker. glibc's malloc would give that thread heaps of at most 64 MiB, which it
returns to the kernel; only its main arena keeps what is freed (`device.keep_freed_memory`)."""

_SECONDS_BETWEEN_LOOKS = 0.2  # at the stop file, which may lie on a network drive


def fit(
    run: RunDirectory,
    workspace: Workspace,
    dataset: str,
    *,
    counts: tuple[int, ...],
    resources: Resources,
    max_failures: int = 3,
    mirror: str | None = None,
) -> None:
    """Train the run on Ray Train workers, on the dataset at an address; returns when it is finished or was stopped.

    ``counts`` are the numbers of workers that the run may have, in increasing order: one, or several for an elastic
    run, which takes the largest that there is room for, now and whenever nodes come or go. A worker or node that dies
    is replaced and the run goes on from its newest checkpoint, ``max_failures`` times (pre-empted nodes don't count).
    ``mirror`` is the address where checkpoints are kept too. Raises UserError with the worker's own message where that
    is one, else Ray's TrainingFailedError.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    check_workers(counts[0], resources)
    use_gpu = resources.gpus > 0
    cpus = resources.cpus_per_worker(min(counts[-1], resources.most_workers()))
    seconds = collective_timeout().total_seconds()
    trainer = trainer_class(counts, run)(
        _work,
        train_loop_config={
            "run": str(run.path),
            "dataset": dataset,
            "root": str(workspace.root),
            "threads": cpus,
            "timeout": seconds,
            "mirror": mirror,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=round(seconds)),
        scaling_config=ScalingConfig(
            num_workers=counts[0] if len(counts) == 1 else (counts[0], counts[-1]),
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=str(run.path / "ray"),
            worker_runtime_env={"env_vars": WORKER_VARIABLES},
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    trainer.fit()


class RayContext:
    """Ray Train's worker as the loop's context."""

    def __init__(self, run: RunDirectory) -> None:
        from ray.train import get_context
        from ray.train.torch import get_device

        context = get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = get_device() if torch.cuda.is_available() else local_device()
        self._run = run
        self._looked = 0.0
        self._preempted: set[str] = set()

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report to Ray's controller; a barrier over the ranks."""
        from ray.train import report

        report(dict(metrics))

    def should_stop(self) -> bool:
        """Return whether the driver asked for a stop; rank 0 looks, a few times a second."""
        now = time.monotonic()
        if self.rank or now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return False
        self._looked = now
        return self._run.stop_file.exists()

    def should_save(self) -> bool:
        """Return whether since the last call a node of ours was announced to go, or the workers to be replaced."""
        from ray.train import get_preemption_info
        from ray.train.collective import broadcast_from_rank_zero

        info = get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        new = nodes - self._preempted
        self._preempted |= nodes
        asked: bool = broadcast_from_rank_zero(self._run.save_request.exists() if self.rank == 0 else None)
        if asked and self.rank == 0:
            self._run.save_request.unlink(missing_ok=True)
        return bool(new) or asked


def _work(arguments: dict[str, Any]) -> None:
    run = RunDirectory.open(Path(arguments["run"]))
    torch.set_num_threads(arguments["threads"])
    os.environ[TIMEOUT_VARIABLE] = str(arguments["timeout"])
    mirror = mirror_of(run, arguments["mirror"])
    try:
        # with the settings of its own node: each has its own cache
        dataset = open_dataset_at(Workspace(Path(arguments["root"])), arguments["dataset"])
        train(run, dataset, RayContext(run), mirror=mirror)
    except TakenOverError:
        raise  # a later attempt goes on; what it does is no concern of this one's
    except UserError as error:
        # The driver watches for this file: what the user has to mend is not retried.
        with replacing(run.error_file) as temporary:
            temporary.write_text(str(error))
        raise


def mirror_of(run: RunDirectory, address: str | None) -> Storage | None:
    """Return where a run's checkpoints are kept a second time: a folder of its own below the address, or nowhere."""
    return storage_at(f"{address.rstrip('/')}/{run.name}") if address else None
