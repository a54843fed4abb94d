"""Evaluation on Ray: a task per chunk, each on one GPU if there are any; a lost task is computed again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resnet_pipeline.adapters.ray.cluster import check_workers, ray_cluster
from resnet_pipeline.data.dataset import open_dataset_at
from resnet_pipeline.data.order import Int64
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.protocols import Protocol
from resnet_pipeline.evaluation.scores import Parts
from resnet_pipeline.evaluation.scoring import Plan, score_chunks
from resnet_pipeline.models import Classifier
from resnet_pipeline.progress import Bar
from resnet_pipeline.workspace import Workspace


def score_on_ray(
    models: Mapping[str, Classifier],
    workspace: Workspace,
    plan: Plan,
    *,
    parts: Mapping[str, Parts],
    lacking: Mapping[int, Sequence[str]],
    digests: Mapping[str, str],
    workers: int | None,
    bar: Bar,
) -> float:
    """Compute the chunks that models lack on ``workers`` Ray tasks at a time (None: as many as fit).

    ``lacking`` says which models lack a chunk of the plan, by its number, ``digests`` the SHA-256 of their weights. The
    dataset and the parts must lie where every node sees them. The bar shows how many images are done. Returns the
    seconds from the first task to the last result. Raises UserError if a task can't be finished, with the task's own
    message if it raised one.
    """
    import ray

    with ray_cluster() as resources:
        count = workers or resources.most_workers()
        check_workers(count, resources)
        cpus = resources.cpus_per_worker(count)
        # the networks go to the object store once, and from there to each node
        task = ray.remote(num_cpus=cpus, num_gpus=1 if resources.gpus else 0, max_retries=3)(_work)
        shared = ray.put(dict(models))
        setting = _Setting(workspace.root, plan.dataset.storage.url, plan.split, plan.protocol, digests, threads=cpus)
        waiting = list(lacking)
        running: dict[Any, int] = {}
        start = time.perf_counter()
        while waiting or running:
            # as many tasks under way as there are workers
            while waiting and len(running) < count:
                number = waiting.pop(0)
                own = {name: parts[name] for name in lacking[number]}
                running[task.remote(shared, own, number, plan.chunks[number], setting)] = number
            # take in what has ended; a user's error ends all
            ended, _ = ray.wait(list(running), num_returns=1)
            for reference in ended:
                number = running.pop(reference)
                try:
                    ray.get(reference)
                except UserError as error:
                    raise UserError(_message(error)) from None
                except ray.exceptions.RayError as error:
                    raise UserError(f"evaluation failed on Ray: {str(error).strip().splitlines()[-1]}") from error
                bar.advance(len(plan.chunks[number]))
        return time.perf_counter() - start


@dataclass(frozen=True)
class _Setting:
    """What all tasks have in common; ``dataset`` is an address."""

    root: Path
    dataset: str
    split: str
    protocol: Protocol
    digests: Mapping[str, str]
    threads: int


def _work(
    models: Mapping[str, Classifier], parts: Mapping[str, Parts], number: int, chunk: Int64, setting: _Setting
) -> None:
    torch.set_num_threads(setting.threads)
    # with the settings of its own node: each has its own cache
    dataset = open_dataset_at(Workspace(setting.root), setting.dataset)
    plan = Plan(dataset=dataset, split=setting.split, protocol=setting.protocol, chunks=[chunk])
    own = {name: models[name] for name in parts}
    (found,) = score_chunks(own, plan, device=local_device(), digests=setting.digests)
    for name, scores in found.items():
        parts[name].write(number, scores)


def _message(error: UserError) -> str:
    """Return the task's own message: Ray puts the task's traceback before it."""
    cause = getattr(error, "cause", None)
    return str(cause) if cause is not None else str(error).strip().splitlines()[-1]
