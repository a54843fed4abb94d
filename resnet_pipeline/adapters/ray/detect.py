"""Tests of detectors on Ray: workers, each on one GPU if there are any, that search part after part of a split."""

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
from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.order import Int64
from resnet_pipeline.detection.finding import find_objects
from resnet_pipeline.detection.improvements import ImprovedDetector
from resnet_pipeline.detection.networks import Detector
from resnet_pipeline.detection.results import ImageFound
from resnet_pipeline.device import local_device
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
    config: RunConfig
    threads: int


def find_on_ray(
    detector: Detector | ImprovedDetector,
    config: RunConfig,
    workspace: Workspace,
    dataset: Dataset,
    split: str,
    parts: Mapping[int, Int64],
    *,
    workers: int | None,
    keep: Callable[[int, list[ImageFound], float], None],
) -> None:
    """Search parts of a split, by number the samples int64 [N] of each, on ``workers`` workers (None: as many as fit).

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
        setting = _Setting(workspace.root, dataset.storage.url, split, config, cpus)
        actor = ray.remote(num_cpus=cpus, num_gpus=1 if resources.gpus else 0)(_Worker)
        shared = ray.put(detector.cpu())

        def begin() -> tuple[Any, Any]:
            worker = actor.remote()
            return worker, worker.open.remote(shared, setting)

        def give(worker: Any, part: _Part) -> Any:
            return worker.find.remote(parts[part.number])

        for part, (found, seconds) in results_of([_Part(number) for number in parts], count, begin, give):
            keep(part.number, found, seconds)


class _Worker:
    """Ray's actor. A user's error is returned, since Ray would wrap what is raised into its traceback."""

    def open(self, detector: Detector | ImprovedDetector, setting: _Setting) -> UserError | None:
        """Open the dataset, with the settings of this node, and bring the network to its device."""
        torch.set_num_threads(setting.threads)
        dataset = opened_there(setting.root, setting.dataset)
        if isinstance(dataset, UserError):
            return dataset
        self._dataset, self._setting, self._device = dataset, setting, local_device()
        self._detector = detector.to(self._device).eval()
        return None

    def find(self, rows: Int64) -> tuple[list[ImageFound], float] | UserError:
        """Return what is found in samples int64 [N], and the seconds that it took."""
        start, split = time.perf_counter(), self._setting.split
        try:
            part = self._dataset.part(split, rows)
            found = find_objects(self._detector, part, split, self._setting.config, device=self._device)
        except UserError as error:
            return error
        return found, time.perf_counter() - start
