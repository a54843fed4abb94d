"""A worker of Ray Train's: it trains what is ordered, by the loop that all launchers share."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from resnet_pipeline.adapters.ray.gauges import Gauges
from resnet_pipeline.adapters.ray.orders import OPEN, SECONDS_BETWEEN_CHECKS, Order, Standing, next_order
from resnet_pipeline.adapters.ray.run_control import RunControl
from resnet_pipeline.data.dataset import open_dataset_at
from resnet_pipeline.detection import task_of, weight_bytes
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UnavailableError, UserError
from resnet_pipeline.logs import configured
from resnet_pipeline.settings import TIMEOUT_VARIABLE, surroundings
from resnet_pipeline.storage import storage_at
from resnet_pipeline.training.attempt import TakenOverError
from resnet_pipeline.training.distributed import from_rank_zero
from resnet_pipeline.training.footprint import check_disk, disk_bytes
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import Pace
from resnet_pipeline.training.mirror import adopt, mirror_of
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.signals import ERROR, SAVE, STOP, Signals
from resnet_pipeline.workspace import Workspace

WORKER_VARIABLES = {"MALLOC_ARENA_MAX": "1"}
"""Ray Train computes in a thread of its worker. glibc's malloc would give that thread heaps of at most 64 MiB, which it
returns to the kernel; only its main arena keeps what is freed (`device.keep_freed_memory`)."""


def worker_variables() -> dict[str, str]:
    """Return what PyTorch's libraries read when they are loaded, which in a worker may be before this package is.

    Example: ``RunConfig(worker_runtime_env={"env_vars": worker_variables()})``
    """
    found = surroundings()
    waits = {"OMP_WAIT_POLICY": found.omp_wait_policy, "GOMP_SPINCOUNT": found.gomp_spincount}
    return WORKER_VARIABLES | {name: value for name, value in waits.items() if value}


def work(config: Mapping[str, Standing]) -> None:
    """Be a worker: its log goes to its stderr, which Ray keeps in a file.

    Example: ``TorchTrainer(work, train_loop_config={"standing": standing})``
    """
    with configured():
        _train_orders(config["standing"])


def _train_orders(standing: Standing) -> None:
    """Train what is ordered until the end; a group that starts anew begins with its first order, which is finished."""
    torch.set_num_threads(standing.threads)
    os.environ[TIMEOUT_VARIABLE] = str(standing.timeout)
    # with the settings of its own node: each has its own cache
    workspace = Workspace(standing.root)
    if standing.orders.get(OPEN) is None:
        raise UserError(f"Ray's node {socket.gethostname()} does not see {standing.orders}, where its orders are")
    for number in itertools.count(1):
        order = next_order(standing.orders, number)
        if order is None:
            return
        run = _copy_of(order, standing.orders, workspace)
        context = RayContext(run)
        try:
            if not run.signals.shared:
                _begin_copy(run)
            dataset = open_dataset_at(workspace, order.dataset)
            task = task_of(run.config(), dataset, context, run=run)
            finished = train(run, dataset, context, mirror=mirror_of(run, order.mirror), aside=order.aside, task=task)
        except (TakenOverError, UnavailableError):
            raise  # a later attempt resumes the run
        except UserError as error:
            # The driver looks for this: what the user has to mend is not retried.
            run.signals.put(ERROR, str(error))
            raise
        if context.rank == 0:
            standing.orders.put(f"order-{number}.done")
        if finished and not run.signals.shared:
            from_rank_zero(None, context.world_size)  # which may be a process of this machine, and send what is here
            shutil.rmtree(run.path, ignore_errors=True)


def _copy_of(order: Order, orders: Signals, workspace: Workspace) -> RunDirectory:
    """Return the run as this process has it: the directory that all see, or a folder of this machine's own."""
    path, home = Path(order.run), storage_at(order.home) if order.home else None
    if isinstance(orders, RunControl):
        return RunDirectory(workspace.scratch / path.name, home=home, signals=orders.of(path.name))
    if not path.is_dir():
        raise UserError(f"Ray's node {socket.gethostname()} does not see {path}")
    return RunDirectory(path, home=home)


def _begin_copy(run: RunDirectory) -> None:
    """Bring the run's config, and its result if it has one, to this machine; UserError if it has no room for a run."""
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    if not run.config_file.exists() or (run.home and run.home.stat(run.result_file.name)):
        adopt(run, weights=False)
    check_disk(
        run.path, disk_bytes(run.config(), weights=weight_bytes(run.config(), classes=len(run.dataset().classes)))
    )


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
        self._checked = 0.0
        self._preempted: set[str] = set()
        self._gauges = Gauges(run.name) if self.rank == 0 else None

    def show(self, step: int, pace: Pace) -> None:
        """Set the gauges that Prometheus reads; rank 0's pace is everyone's."""
        if self._gauges:
            self._gauges.show(step, pace)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report to Ray's controller; a barrier over the ranks."""
        from ray.train import report

        report(dict(metrics))

    def should_stop(self) -> bool:
        """Return whether the driver asked for a stop; rank 0 looks, a few times a second."""
        now = time.monotonic()
        if self.rank or now - self._checked < SECONDS_BETWEEN_CHECKS:
            return False
        self._checked = now
        return self._run.signals.get(STOP) is not None

    def should_save(self) -> bool:
        """Return whether since the last call a node of ours was announced to go, or the workers to be replaced."""
        from ray.train import get_preemption_info
        from ray.train.collective import broadcast_from_rank_zero

        info = get_preemption_info()
        nodes = set(info.preempted_node_ids) if info else set()
        new = nodes - self._preempted
        self._preempted |= nodes
        signals = self._run.signals
        asked: bool = broadcast_from_rank_zero(signals.get(SAVE) is not None if self.rank == 0 else None)
        if asked and self.rank == 0:
            signals.remove(SAVE)
        return bool(new) or asked
