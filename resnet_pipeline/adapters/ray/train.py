"""Ray Train: the training loop on the workers of a cluster."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from resnet_pipeline.adapters.ray.cluster import Resources, check_workers, ray_cluster
from resnet_pipeline.adapters.ray.trainer import trainer_class
from resnet_pipeline.data.dataset import open_dataset_at
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UnavailableError, UserError
from resnet_pipeline.files import replacing, write_json
from resnet_pipeline.logs import configured
from resnet_pipeline.records import JsonObject, load_record, plain_record, read_record
from resnet_pipeline.settings import ROOT_VARIABLE, TIMEOUT_VARIABLE, surroundings
from resnet_pipeline.training.attempt import TakenOverError
from resnet_pipeline.training.distributed import collective_timeout
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.mirror import mirror_of
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

WORKER_VARIABLES = {"MALLOC_ARENA_MAX": "1"}
"""Ray Train computes in a thread of its worker. glibc's malloc would give that thread heaps of at most 64 MiB, which it
returns to the kernel; only its main arena keeps what is freed (`device.keep_freed_memory`)."""

_SECONDS_FOR_LEAVING = 60.0
_SECONDS_BETWEEN_CHECKS = 0.2  # at the stop file, which may lie on a network drive


@dataclass(frozen=True, kw_only=True)
class Order:
    """A run's directory, the address of its dataset, where its checkpoints are kept too, and if it is tested aside."""

    run: str
    dataset: str
    mirror: str | None
    aside: bool = False


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a worker knows from its start: the folder of orders, the root, its CPU threads, the timeout in seconds."""

    folder: str
    root: str
    threads: int
    timeout: float


class WorkerGroup:
    """Ray Train workers that train one run after another: a start takes as long as thousands of small steps.

    A folder of its own below ``folder``, which every node sees, holds the orders: ``order-N.json`` names a run,
    ``order-N.done`` says that its training has returned, and ``end`` sends the workers home. ``counts`` are the numbers
    of workers that the group may have, in increasing order: one, or several for an elastic run, which takes the largest
    that there is room for, now and whenever nodes come or go; they leave room for ``beside`` others. A worker or node
    that dies is replaced, and its run resumes from its newest checkpoint, ``max_failures`` times (pre-empted nodes
    don't count). The workers start at once, in the background.
    """

    def __init__(
        self,
        folder: Path,
        *,
        root: Path,
        counts: tuple[int, ...],
        resources: Resources,
        max_failures: int = 3,
        elastic: RunDirectory | None = None,
        beside: int = 0,
    ) -> None:
        check_workers(counts[0], resources)
        self.counts = counts
        self.sound = True
        """Whether it can take another order."""
        self._orders = 0
        self._folder = folder / f"{socket.gethostname()}-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{socket.gethostname()}-*"):  # of a start that was killed, or of this one
            if left == self._folder or not psutil.pid_exists(int(left.name.rpartition("-")[2])):
                shutil.rmtree(left)
        self._folder.mkdir()
        self.cpus = resources.cpus_per_worker(min(counts[-1] + beside, resources.most_workers()))
        """CPUs of each worker."""
        trainer = _trainer(self._folder, root, counts, resources, self.cpus, max_failures, elastic)
        self._fitting = in_thread(trainer.fit)

    def begin(self, run: RunDirectory, dataset: str, mirror: str | None = None, *, aside: bool = False) -> None:
        """Order the training of a run on the dataset at an address; ``mirror`` is where checkpoints are kept too.

        With ``aside`` the networks of mid-training are handed out for tests.
        """
        self._orders += 1
        order = Order(run=str(run.path), dataset=dataset, mirror=mirror, aside=aside)
        write_json(self._folder / f"order-{self._orders}.json", plain_record(order))

    def finished(self) -> bool:
        """Return whether the last order's training has returned; raise what ended the workers before that."""
        if (self._folder / f"order-{self._orders}.done").exists():
            return True
        if not self._fitting.done():
            return False
        self.sound = False
        self._fitting.result()
        raise RuntimeError("the workers ended before their order was done")

    def close(self) -> None:
        """Send the workers home; if all went well on a cluster that stays, wait until it has its CPUs back."""
        if self._folder.exists():
            (self._folder / "end").touch()
        if self.sound and surroundings().ray_address:
            concurrent.futures.wait([self._fitting], timeout=_SECONDS_FOR_LEAVING)
        self.sound = False
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._folder.parent.rmdir()


@contextlib.contextmanager
def standing_workers(workspace: Workspace, count: int) -> Iterator[None]:
    """Inside, all trainings with ``count`` workers share one group of them, which begins to start at once.

    Example::

        with standing_workers(Workspace.of(), 2): train_run(Workspace.of(), config, "digits", Launch(workers=2))
    """
    with ray_cluster() as resources:
        group = WorkerGroup(workspace.root / "ray", root=workspace.root, counts=(count,), resources=resources)
        _standing.append(group)
        try:
            yield
        finally:
            _standing.remove(group)
            group.close()


@contextlib.contextmanager
def worker_group(
    workspace: Workspace,
    run: RunDirectory,
    *,
    counts: tuple[int, ...],
    resources: Resources,
    max_failures: int = 3,
    beside: int = 0,
) -> Iterator[WorkerGroup]:
    """Yield the standing workers if they have these ``counts``, else a group for this run alone.

    With ``beside`` it is one for this run alone, which leaves room for that many other workers. After an error they
    take no more orders.
    """
    fitting = (standing for standing in _standing if standing.sound and standing.counts == counts and not beside)
    group = next(fitting, None)
    if group is None:
        dismiss_standing_workers()
        group = WorkerGroup(
            run.path / "ray",
            root=workspace.root,
            counts=counts,
            resources=resources,
            max_failures=max_failures,
            elastic=run if len(counts) > 1 else None,
            beside=beside,
        )
    try:
        yield group
    except BaseException:
        group.sound = False
        raise
    finally:
        if group not in _standing or not group.sound:
            group.close()


_standing: list[WorkerGroup] = []


def dismiss_standing_workers() -> None:
    """Send standing workers home: they hold the CPUs, or the GPUs, that are wanted now."""
    for standing in _standing:
        standing.close()


def is_lost(error: BaseException) -> bool:
    """Return whether what ended the workers is the loss of the cluster, or of the node that directs them.

    Example: ``is_lost(ray.exceptions.ActorDiedError())``
    """
    from ray.exceptions import LocalRayletDiedError, NodeDiedError, RayActorError, RaySystemError

    return isinstance(error, (RayActorError, RaySystemError, NodeDiedError, LocalRayletDiedError, ConnectionError))


def in_thread(call: Callable[[], object]) -> Future[object]:
    """Run a call in a daemon thread: in the main one Ray Train would take SIGINT for itself."""
    future: Future[object] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="ray-train", daemon=True).start()
    return future


def _trainer(
    folder: Path,
    root: Path,
    counts: tuple[int, ...],
    resources: Resources,
    cpus: int,
    max_failures: int,
    elastic: RunDirectory | None,
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    use_gpu = resources.gpus > 0
    seconds = collective_timeout().total_seconds()
    standing = Standing(folder=str(folder), root=str(root), threads=cpus, timeout=seconds)
    return trainer_class(counts, elastic, alone=not surroundings().ray_address)(
        _work,
        train_loop_config=plain_record(standing),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=round(seconds)),
        scaling_config=ScalingConfig(
            num_workers=counts[0] if len(counts) == 1 else (counts[0], counts[-1]),
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(folder),
            worker_runtime_env={"env_vars": _worker_variables()},
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )


def _worker_variables() -> dict[str, str]:
    """Return what PyTorch's libraries read when they are loaded, which in a worker may be before this package is."""
    found = surroundings()
    waits = {"OMP_WAIT_POLICY": found.omp_wait_policy, "GOMP_SPINCOUNT": found.gomp_spincount}
    return WORKER_VARIABLES | {name: value for name, value in waits.items() if value}


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

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report to Ray's controller; a barrier over the ranks."""
        from ray.train import report

        report(dict(metrics))

    def should_stop(self) -> bool:
        """Return whether the driver asked for a stop; rank 0 looks, a few times a second."""
        now = time.monotonic()
        if self.rank or now - self._checked < _SECONDS_BETWEEN_CHECKS:
            return False
        self._checked = now
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


def _work(config: JsonObject) -> None:
    """Be a worker: its log goes to its stderr, which Ray keeps in a file."""
    with configured():
        _train_orders(config)


def _train_orders(config: JsonObject) -> None:
    """Train what is ordered until the end; a group that starts anew begins with its first order, which is finished."""
    standing = read_record(Standing, config)
    torch.set_num_threads(standing.threads)
    os.environ[TIMEOUT_VARIABLE] = str(standing.timeout)
    # with the settings of its own node: each has its own cache
    workspace, folder = Workspace(Path(standing.root)), Path(standing.folder)
    if not folder.exists():
        raise UserError(f"Ray's node {socket.gethostname()} does not see {folder}: {ROOT_VARIABLE} must be shared")
    for number in itertools.count(1):
        order = _next_order(folder, number)
        if order is None:
            return
        run = RunDirectory.open(Path(order.run))
        context = RayContext(run)
        try:
            dataset = open_dataset_at(workspace, order.dataset)
            train(run, dataset, context, mirror=mirror_of(run, order.mirror), aside=order.aside)
        except (TakenOverError, UnavailableError):
            raise  # a later attempt resumes the run
        except UserError as error:
            # The driver watches for this file: what the user has to mend is not retried.
            with replacing(run.error_file) as temporary:
                temporary.write_text(str(error))
            raise
        if context.rank == 0:
            (folder / f"order-{number}.done").touch()


def _next_order(folder: Path, number: int) -> Order | None:
    """Wait for an order; None when there will be no more, also when the folder is gone."""
    file = folder / f"order-{number}.json"
    while folder.exists() and not (folder / "end").exists():
        with contextlib.suppress(FileNotFoundError):
            return load_record(Order, file)
        time.sleep(_SECONDS_BETWEEN_CHECKS / 4)
    return None
