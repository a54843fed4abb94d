"""Tests of detectors and localisers on Ray: workers, each on one GPU if there are any, that search part after part."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resnet_pipeline.adapters.ray.cluster import check_workers, ray_cluster
from resnet_pipeline.adapters.ray.evaluate import opened_there, results_of
from resnet_pipeline.adapters.ray.train import dismiss_standing_workers
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.order import Int64
from resnet_pipeline.detection.results import Find, ImageFound
from resnet_pipeline.errors import UserError
from resnet_pipeline.workspace import Workspace


@dataclass(frozen=True)
class _Part:
    number: int


@dataclass(frozen=True)
class _Setting:
    """What all workers have in common; ``dataset`` is an address."""

    root: Path
    dataset: str
    split: str
    threads: int


def find_on_ray(
    find: Find,
    workspace: Workspace,
    dataset: Dataset,
    split: str,
    parts: Mapping[int, tuple[Int64, Int64]],
    *,
    workers: int | None,
    keep: Callable[[int, list[ImageFound], float], None],
) -> None:
    """Search parts of a split on ``workers`` workers (None: as many as fit).

    ``parts`` are by number the samples int64 [N] of each, and their places among all that are searched, int64 [N].
    ``keep`` takes what was found in a part, and its worker's seconds, as soon as it is there. A lost worker is
    replaced. Raises UserError if it can't be finished, with the worker's own message if it has one.
    """
    import ray

    dismiss_standing_workers()
    with ray_cluster() as resources:
        most = workers or resources.most_workers()
        check_workers(most, resources)
        count = min(most, len(parts))
        cpus = resources.cpus_per_worker(count)
        setting = _Setting(workspace.root, dataset.storage.url, split, cpus)
        actor = ray.remote(num_cpus=cpus, num_gpus=1 if resources.gpus else 0)(_Worker)
        shared = ray.put(find)

        def begin() -> tuple[Any, Any]:
            worker = actor.remote()
            return worker, worker.open.remote(shared, setting)

        def give(worker: Any, part: _Part) -> Any:
            return worker.find.remote(*parts[part.number])

        for part, (found, seconds) in results_of([_Part(number) for number in parts], count, begin, give):
            keep(part.number, found, seconds)


class _Worker:
    """Ray's actor. A user's error is returned, since Ray would wrap what is raised into its traceback."""

    def open(self, find: Find, setting: _Setting) -> UserError | None:
        """Open the dataset, with the settings of this node."""
        torch.set_num_threads(setting.threads)
        dataset = opened_there(setting.root, setting.dataset)
        if isinstance(dataset, UserError):
            return dataset
        self._dataset, self._setting, self._find = dataset, setting, find
        return None

    def find(self, rows: Int64, places: Int64) -> tuple[list[ImageFound], float] | UserError:
        """Return what is found in samples int64 [N], at these places, and the seconds that it took."""
        start, split = time.perf_counter(), self._setting.split
        try:
            found = self._find(self._dataset.part(split, rows), split, places, lambda images: None)
        except UserError as error:
            return error
        return found, time.perf_counter() - start
