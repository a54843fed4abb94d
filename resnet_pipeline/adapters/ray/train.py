"""Ray Train: the training loop on the workers of a cluster."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
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
from resnet_pipeline.adapters.ray.gauges import Gauges
from resnet_pipeline.adapters.ray.run_control import RunControl
from resnet_pipeline.adapters.ray.trainer import trainer_class
from resnet_pipeline.adapters.ray.versions import check_sees
from resnet_pipeline.data.dataset import open_dataset_at
from resnet_pipeline.detection import task_of, weight_bytes
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UnavailableError, UserError, lines_of
from resnet_pipeline.files import json_text
from resnet_pipeline.logs import configured
from resnet_pipeline.records import plain_record, read_record
from resnet_pipeline.settings import TIMEOUT_VARIABLE, surroundings
from resnet_pipeline.storage import storage_at
from resnet_pipeline.training.attempt import TakenOverError
from resnet_pipeline.training.distributed import collective_timeout, from_rank_zero
from resnet_pipeline.training.footprint import check_disk, disk_bytes
from resnet_pipeline.training.loop import train
from resnet_pipeline.training.metrics_log import Pace
from resnet_pipeline.training.mirror import adopt, mirror_of
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.signals import ERROR, SAVE, STOP, FileSignals, Signals
from resnet_pipeline.workspace import Workspace

WORKER_VARIABLES = {"MALLOC_ARENA_MAX": "1"}
"""Ray Train computes in a thread of its worker. glibc's malloc would give that thread heaps of at most 64 MiB, which it
returns to the kernel; only its main arena keeps what is freed (`device.keep_freed_memory`)."""

_SECONDS_FOR_LEAVING = 60.0
_SECONDS_BETWEEN_CHECKS = 0.2  # whether to stop: a file, which may lie on a network drive, or a question to an actor
_OPEN = "open"  # as long as there may be more orders


@dataclass(frozen=True, kw_only=True)
class Order:
    """A run's directory and home, the address of its dataset, its mirror, and if it is tested aside."""

    run: str
    home: str | None
    dataset: str
    mirror: str | None
    aside: bool = False


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a worker knows from its start: where its orders are, the root, its CPU threads, the timeout in seconds."""

    orders: Signals
    root: Path
    threads: int
    timeout: float


class WorkerGroup:
    """Ray Train workers that train one run after another: a start takes as long as thousands of small steps.

    Orders are signals, in a folder of its own below ``folder``, or in an actor, ``control``, if the nodes of a cluster
    need not see one (`works_apart`). ``order-N.json`` names a run, ``order-N.done`` says that its training has
    returned, and without ``open`` the workers go home. ``counts`` are the numbers of workers that the group may have,
    in increasing order: one, or several for an elastic run, which takes the largest that there is room for, now and
    whenever nodes come or go; they leave room for ``beside`` others. A worker or node that dies is replaced, and its
    run resumes from its newest checkpoint, ``max_failures`` times (pre-empted nodes don't count). The workers start at
    once, in the background.
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
        control: RunControl | None = None,
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
        if surroundings().ray_address and control is None:
            check_sees(self._folder)
        self._control = control
        self._order: Signals = control or FileSignals(self._folder)
        self._order.put(_OPEN)
        self.cpus = resources.cpus_per_worker(min(counts[-1] + beside, resources.most_workers()))
        """CPUs of each worker."""
        seconds = collective_timeout().total_seconds()
        standing = Standing(orders=self._order, root=root, threads=self.cpus, timeout=seconds)
        resized = self.attended(elastic) if elastic else None
        places = control.run if control else None
        trainer = _trainer(self._folder, standing, counts, resources, max_failures, resized, places)
        self._fitting = in_thread(trainer.fit)

    def attended(self, run: RunDirectory) -> RunDirectory:
        """Return the run with the signals by which these workers hear and speak."""
        return RunDirectory(run.path, home=run.home, signals=self._control.of(run.name)) if self._control else run

    def begin(self, run: RunDirectory, dataset: str, mirror: str | None = None, *, aside: bool = False) -> None:
        """Order the training of a run on the dataset at an address; ``mirror`` is where checkpoints are kept too.

        With ``aside`` the networks of mid-training are handed out for tests.
        """
        self._orders += 1
        home = run.home.url if run.home else None
        order = Order(run=str(run.path), home=home, dataset=dataset, mirror=mirror, aside=aside)
        self._order.put(f"order-{self._orders}.json", json_text(plain_record(order)))

    def finished(self) -> bool:
        """Return whether the last order's training has returned; raise what ended the workers before that."""
        if self._order.get(f"order-{self._orders}.done") is not None:
            return True
        if not self._fitting.done():
            return False
        self.sound = False
        self._fitting.result()
        raise RuntimeError("the workers ended before their order was done")

    def close(self) -> None:
        """Send the workers home; if all went well on a cluster that stays, wait until it has its CPUs back."""
        if self._folder.exists():
            with contextlib.suppress(UserError):
                self._order.remove(_OPEN)
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
        group = WorkerGroup(
            workspace.root / "ray",
            root=workspace.root,
            counts=(count,),
            resources=resources,
        )
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


def works_apart(workspace: Workspace) -> bool:
    """Return whether workers have folders of their own: they are on other machines, and runs have a home.

    Example: ``works_apart(Workspace.of())``
    """
    return workspace.home is not None and surroundings().ray_address is not None


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


def failure(error: BaseException) -> str:
    """Return what is said of a training whose workers ended by an error that is not the user's.

    Example: ``failure(RuntimeError("out of memory"))``
    """
    return f"training failed: {lines_of(error)[-1]}; Ray's logs are in /tmp/ray/session_latest/logs"


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
    standing: Standing,
    counts: tuple[int, ...],
    resources: Resources,
    max_failures: int,
    elastic: RunDirectory | None,
    places: str | None,
) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig

    use_gpu = resources.gpus > 0
    return trainer_class(counts, elastic, alone=not surroundings().ray_address, places=places)(
        _work,
        train_loop_config={"standing": standing},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=round(standing.timeout)),
        scaling_config=ScalingConfig(
            num_workers=counts[0] if len(counts) == 1 else (counts[0], counts[-1]),
            use_gpu=use_gpu,
            resources_per_worker={"CPU": standing.threads} | ({"GPU": 1} if use_gpu else {}),
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
        if self.rank or now - self._checked < _SECONDS_BETWEEN_CHECKS:
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


def _work(config: Mapping[str, Standing]) -> None:
    """Be a worker: its log goes to its stderr, which Ray keeps in a file."""
    with configured():
        _train_orders(config["standing"])


def _train_orders(standing: Standing) -> None:
    """Train what is ordered until the end; a group that starts anew begins with its first order, which is finished."""
    torch.set_num_threads(standing.threads)
    os.environ[TIMEOUT_VARIABLE] = str(standing.timeout)
    # with the settings of its own node: each has its own cache
    workspace = Workspace(standing.root)
    if standing.orders.get(_OPEN) is None:
        raise UserError(f"Ray's node {socket.gethostname()} does not see {standing.orders}, where its orders are")
    for number in itertools.count(1):
        order = _next_order(standing.orders, number)
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


def _next_order(orders: Signals, number: int) -> Order | None:
    """Wait for an order; None when there will be no more, also when the folder is gone."""
    while orders.get(_OPEN) is not None:
        if (text := orders.get(f"order-{number}.json")) is not None:
            return read_record(Order, json.loads(text))
        time.sleep(_SECONDS_BETWEEN_CHECKS / 4)
    return None
