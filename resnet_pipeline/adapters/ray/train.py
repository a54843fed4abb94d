"""Ray Train: the training loop on the workers of a cluster."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil

from resnet_pipeline.adapters.ray.cluster import Resources, check_workers, ray_cluster
from resnet_pipeline.adapters.ray.orders import OPEN, Order, Standing
from resnet_pipeline.adapters.ray.run_control import RunControl
from resnet_pipeline.adapters.ray.trainer import trainer_class
from resnet_pipeline.adapters.ray.versions import check_sees
from resnet_pipeline.adapters.ray.worker import work, worker_variables
from resnet_pipeline.errors import UserError, lines_of
from resnet_pipeline.files import json_text
from resnet_pipeline.records import plain_record
from resnet_pipeline.settings import surroundings
from resnet_pipeline.training.distributed import collective_timeout
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.signals import FileSignals, Signals
from resnet_pipeline.workspace import Workspace

_SECONDS_FOR_LEAVING = 60.0


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
        self._order.put(OPEN)
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
        """Send the workers home; if all went well, wait until they are, which takes less than a second.

        A cluster that stays has its CPUs back then. And who leaves Ray while a thread waits for its answer may be ended
        by a segmentation fault (2.60).
        """
        if self._folder.exists():
            with contextlib.suppress(UserError):
                self._order.remove(OPEN)
        if self.sound:
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
        except BaseException:  # they may be in the middle of something, or not even there yet
            group.sound = False
            raise
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

    from resnet_pipeline.adapters.ray.process_group import ProcessGroup

    use_gpu = resources.gpus > 0
    return trainer_class(counts, elastic, alone=not surroundings().ray_address, places=places)(
        work,
        train_loop_config={"standing": standing},
        backend_config=ProcessGroup(backend="nccl" if use_gpu else "gloo", seconds=standing.timeout),
        scaling_config=ScalingConfig(
            num_workers=counts[0] if len(counts) == 1 else (counts[0], counts[-1]),
            use_gpu=use_gpu,
            resources_per_worker={"CPU": standing.threads} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RunConfig(
            name="train",
            storage_path=str(folder),
            worker_runtime_env={"env_vars": worker_variables()},
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
