"""Ray: shards are packed by tasks on all nodes of a cluster, behind the protocol of ``staging.shard_pool``."""

from __future__ import annotations

import socket
from concurrent.futures import Future
from functools import partial
from typing import Any

from resnet_pipeline.adapters.ray.cluster import Resources
from resnet_pipeline.errors import UserError
from resnet_pipeline.staging.area import IDENTITY
from resnet_pipeline.staging.shard_writer import Outcome, Task, pack_shard

_SECONDS_FOR_ENDING = 30.0


class RayTasks:
    """A task for each shard, on a CPU each; inside of ``ray_cluster()``. A task whose node dies is run again by Ray."""

    def __init__(self, resources: Resources, count: int | None = None) -> None:
        import ray

        cpus = sum(cpus for cpus, _ in resources.nodes)
        self.count = min(count or cpus, cpus)
        self._work = ray.remote(num_cpus=1)(_work)
        self._under_way: dict[Any, Future[Outcome]] = {}

    def submit(self, task: Task) -> Future[Outcome]:
        """Begin with a task when a CPU is free."""
        reference = self._work.remote(task)
        future: Future[Outcome] = Future()
        self._under_way[reference] = future
        reference.future().add_done_callback(partial(_settle, future))
        return future

    def running(self) -> None:
        """Return None: only finished tasks say how far they have come."""

    @property
    def begun(self) -> bool:
        """True: Ray says itself why a task can't start."""
        return True

    def close(self) -> None:
        """Cancel what is unfinished, and wait for its end: it may be writing where the caller wants to clear up."""
        import ray

        unfinished = [reference for reference, future in self._under_way.items() if not future.done()]
        for reference in unfinished:
            ray.cancel(reference)
        if unfinished:
            ray.wait(unfinished, num_returns=len(unfinished), timeout=_SECONDS_FOR_ENDING)


def _work(task: Task) -> Outcome | UserError:
    """Run on any node; a user's error is returned, since Ray would wrap what is raised into its traceback."""
    try:
        node = f"Ray's node {socket.gethostname()} does not see"
        if task.destination.stat(IDENTITY) is None:
            raise UserError(
                f"{node} {task.destination.url}; put the datasets on a volume "
                "that all nodes share or in a bucket (RESNET_PIPELINE_DATA), or unset RAY_ADDRESS"
            )
        if task.source.stat(task.shard.entries[0].member.file) is None:
            raise UserError(
                f"{node} {task.source.url}; mount it there at the same path, name a source in a bucket, "
                "or unset RAY_ADDRESS"
            )
        return pack_shard(task)
    except UserError as error:
        return error


def _settle(future: Future[Outcome], ended: Future[Any]) -> None:
    error = ended.exception()
    if error is not None:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        future.set_exception(UserError(f"a Ray task ended: {reason}; start again: it resumes"))
    elif isinstance(found := ended.result(), UserError):
        future.set_exception(found)
    else:
        future.set_result(found)
