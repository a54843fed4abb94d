"""Ray: a worker with a place of its own tests the networks of mid-training while the others train on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from resnet_pipeline.adapters.ray.cluster import Resources
from resnet_pipeline.data.dataset import open_dataset_at
from resnet_pipeline.detection import task_of
from resnet_pipeline.device import chosen_precision, local_device, prepare_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.models.weights import load_own_weights
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.handouts import Answer, Handouts
from resnet_pipeline.training.mirror import adopt
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

_SECONDS_BETWEEN_LOOKS = 0.5  # at the run's folder, which may lie on a network drive
_MOST_LOSSES = 3  # of workers one after another


def leaving_room(counts: tuple[int, ...], resources: Resources) -> tuple[int, ...]:
    """Return the numbers of training workers beside which one more fits; UserError if there is none.

    >>> leaving_room((1, 2, 4), Resources(nodes=((8, 4),)))
    (1, 2)
    """
    most = resources.most_workers()
    found = tuple(count for count in counts if count < most)
    if not found:
        raise UserError(
            f"--validate-aside needs room for one worker more than the {counts[0]} that train, and the Ray cluster has "
            f"room for {most}; name fewer with --workers, or leave it out"
        )
    return found


@contextlib.contextmanager
def tested_aside(
    run: RunDirectory, workspace: Workspace, dataset: str, *, resources: Resources, cpus: int
) -> Iterator[Callable[[], None]]:
    """Have a worker with ``cpus`` CPUs, and a GPU if there are any, while inside; yield what is to be called often.

    That takes in what is tested, and gives the worker the newest network that waits; older ones are skipped, so that
    tests never lag behind by more than one. A worker that is lost is replaced.
    """
    import ray

    actor = ray.remote(num_cpus=cpus, num_gpus=1 if resources.gpus else 0)(_Tester)
    tests = _Tests(Handouts(run), lambda: actor.remote(run, workspace.root, dataset, cpus))
    try:
        yield tests.poll
    finally:
        tests.close()


class _Tests:
    def __init__(self, handouts: Handouts, begin: Callable[[], Any]) -> None:
        self._handouts, self._begin = handouts, begin
        self._worker = begin()
        self._under_way: tuple[int, Any] | None = None
        self._looked, self._losses = 0.0, 0

    def poll(self) -> None:
        """Take in the test that has ended, and begin the next."""
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        if self._under_way and not self._ended(*self._under_way):
            return
        self._under_way = None
        if asked := self._handouts.asked():
            *skipped, step = asked
            for late in skipped:
                self._handouts.answer(late, Answer(problem=f"it was not tested yet when step {step} was"))
            self._under_way = step, self._worker.test.remote(step)

    def close(self) -> None:
        """Let the worker go."""
        import ray

        ray.kill(self._worker)

    def _ended(self, step: int, reference: Any) -> bool:
        """Return whether a test has ended, and say what it came to; a lost worker's is asked for again."""
        import ray

        if not ray.wait([reference], timeout=0)[0]:
            return False
        try:
            self._handouts.answer(step, ray.get(reference))
            self._losses = 0
        except ray.exceptions.RayError as error:
            ray.kill(self._worker)
            self._worker = self._begin()
            self._losses += 1
            if self._losses > _MOST_LOSSES or isinstance(error, ray.exceptions.RayTaskError):
                self._handouts.answer(step, Answer(problem=str(error).strip().splitlines()[-1]))
                self._losses = 0
        return True


class _Tester:
    """Ray's actor; it opens the dataset and builds the network with its first test."""

    def __init__(self, run: RunDirectory, root: Path, dataset: str, threads: int) -> None:
        self._root, self._address, self._threads = root, dataset, threads
        self._run = run if run.signals.shared else run.elsewhere(Workspace(root).scratch / f"{run.name}-tests")
        self._opened: tuple[Any, Any] | None = None

    def test(self, step: int) -> Answer:
        """Test the network of a step as one training process would, all images by itself."""
        torch.set_num_threads(self._threads)
        try:
            task, network = self._opened = self._opened or self._open()
            weights = Handouts(self._run).weights(step)
            load_own_weights(network, weights)
            if not self._run.signals.shared:
                weights.unlink()  # this machine's copy
            found = task.validate(network, lambda: None)
        except UserError as error:
            return Answer(problem=str(error))
        return Answer(figures=tuple(found.values.items()), error=found.error)

    def _open(self) -> tuple[Any, Any]:
        adopt(self._run, weights=False)  # of a run that this machine has no copy of, its config
        config, device = self._run.config(), local_device()
        precision = chosen_precision(config.precision, device)
        prepare_device(device, precision)
        dataset = open_dataset_at(Workspace(self._root), self._address)
        task = task_of(config, dataset, LocalContext(device=device), run=self._run)
        network = task.network()
        network = network.double() if precision == "float64" else network
        return task, network.to(device).to(memory_format=torch.channels_last)
