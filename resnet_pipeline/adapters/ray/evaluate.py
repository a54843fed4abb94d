"""Evaluation on Ray: workers, each on one GPU if there are any, that open the dataset once and take piece after piece.

They return scores, and the process that has started them keeps them: nothing of theirs needs a folder that all see.
"""

from __future__ import annotations

import logging
import math
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from resnet_pipeline.adapters.ray.cluster import check_workers, ray_cluster
from resnet_pipeline.adapters.ray.train import dismiss_standing_workers
from resnet_pipeline.data.dataset import Dataset, open_dataset_at
from resnet_pipeline.data.manifest import NoDatasetError
from resnet_pipeline.data.order import Int64
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UnavailableError, UserError, lines_of
from resnet_pipeline.evaluation.protocols import Protocol
from resnet_pipeline.evaluation.scores import Parts, Scores, merge_scores
from resnet_pipeline.evaluation.scoring import Plan, Prepared, pieces, prepare, score_chunks
from resnet_pipeline.models import Classifier
from resnet_pipeline.progress import Bar
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

G = TypeVar("G")

_PIECES_PER_WORKER = 3  # so that none waits long for the last one
_MOST_PIECES = 8  # of a chunk: 33 images at 10 crops; a decoder is made for each
_SECONDS_UNTIL_SAID = 60
_MOST_LOSSES = 3  # of workers that had the same piece, and of those that were starting


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
    """Compute the chunks that models lack on ``workers`` workers (None: as many as fit), and keep them in ``parts``.

    ``lacking`` says which models lack a chunk of the plan, by its number, ``digests`` the SHA-256 of their weights. The
    dataset must lie where every node sees it. Chunks are cut into pieces if there are many workers, and kept when they
    are whole. A lost worker is replaced, and another one gets its piece. The bar shows how many images are done.
    Returns the seconds from the first piece to the last result. Raises UserError if it can't be finished, with the
    worker's own message if it has one.
    """
    import ray

    dismiss_standing_workers()
    with ray_cluster() as resources:
        most = workers or resources.most_workers()
        check_workers(most, resources)
        # a piece for each worker at least, as far as the chunks can be cut
        each = min(_MOST_PIECES, math.ceil(most * _PIECES_PER_WORKER / len(lacking)))
        cut = {number: pieces(plan, number, each) for number in lacking}
        waiting = [_Piece(number, place) for number, own in cut.items() for place in range(len(own))]
        count = min(most, len(waiting))
        cpus = resources.cpus_per_worker(count)
        setting = _Setting(workspace.root, plan.dataset.storage.url, plan.split, plan.protocol, digests, threads=cpus)
        actor = ray.remote(num_cpus=cpus, num_gpus=1 if resources.gpus else 0)(_Worker)
        # the networks go to the object store once, and from there to each node
        shared = ray.put(dict(models))

        def begin() -> _Begun:
            worker = actor.remote()
            return worker, worker.open.remote(shared, setting)

        def give(worker: Any, piece: _Piece) -> Any:
            return worker.score.remote(cut[piece.number][piece.place], lacking[piece.number])

        done: dict[int, dict[int, Mapping[str, Scores]]] = {number: {} for number in lacking}
        start = time.perf_counter()
        for piece, scores in results_of(waiting, count, begin, give):
            number, found = piece.number, done[piece.number]
            found[piece.place] = scores
            bar.advance(len(cut[number][piece.place]))
            if len(found) == len(cut[number]):
                keys = [key for place in sorted(found) for key in found[place][lacking[number][0]].keys]
                for name in lacking[number]:
                    parts[name].keep(number, merge_scores([found[place][name] for place in sorted(found)], keys))
                del done[number]
        return time.perf_counter() - start


@dataclass(frozen=True)
class _Piece:
    """The chunk's number, and the piece's place in it."""

    number: int
    place: int


_Begun = tuple[Any, Any]
"""A worker, and what it returns when it is ready."""


def results_of(
    given: Sequence[G], count: int, begin: Callable[[], _Begun], give: Callable[[Any, G], Any]
) -> Iterator[tuple[G, Any]]:
    """Yield each piece with what a worker returns for it, in any order; none waits for a worker that has no room yet.

    A worker that is lost is replaced, and its piece is the next one. UnavailableError if the same piece, or the start,
    has cost too many workers.
    """
    import ray

    waiting, losses = deque(given), Counter[G | None]()
    busy: dict[Any, tuple[Any, G | None]] = {}  # by what is returned; None: it starts
    said = False

    def start() -> None:
        worker, ready = begin()
        busy[ready] = worker, None

    try:
        for _ in range(count):
            start()
        while waiting or any(piece for _, piece in busy.values()):
            ended, _ = ray.wait(list(busy), num_returns=1, timeout=_SECONDS_UNTIL_SAID)
            if not ended:
                if not said and all(piece is None for _, piece in busy.values()):
                    _log.warning("Ray has no room for a worker now; waiting until others of its work end")
                    said = True
                continue
            (returned,) = ended
            worker, piece = busy.pop(returned)
            try:
                found = ray.get(returned)
            except ray.exceptions.RayError as error:
                ray.kill(worker)  # one that only can't be reached may be alive
                if isinstance(error, ray.exceptions.RayTaskError):
                    raise UserError(f"evaluation failed on Ray: {str(error).strip().splitlines()[-1]}") from error
                losses[piece] += 1
                if piece:
                    waiting.appendleft(piece)
                if losses[piece] <= _MOST_LOSSES:
                    start()
                elif piece or not busy:
                    lost = f"evaluation failed on Ray: {_reason(error)}, {losses[piece]} times"
                    raise UnavailableError(lost) from error
                continue
            if waiting and not isinstance(found, UserError):
                following = waiting.popleft()
                busy[give(worker, following)] = worker, following
            else:
                ray.kill(worker)  # its place is free for others' work
            if isinstance(found, UserError):
                raise found
            if piece:
                yield piece, found
    finally:
        for worker, _ in busy.values():
            ray.kill(worker)


@dataclass(frozen=True)
class _Setting:
    """What all workers have in common; ``dataset`` is an address."""

    root: Path
    dataset: str
    split: str
    protocol: Protocol
    digests: Mapping[str, str]
    threads: int


def opened_there(root: Path, address: str) -> Dataset | UserError:
    """Return the dataset at an address as a worker's node sees it, or why it does not."""
    try:
        return open_dataset_at(Workspace(root), address)
    except NoDatasetError:
        return UserError(
            f"Ray's node {socket.gethostname()} does not see {address}; put the datasets on a volume that all nodes "
            "share or in a bucket (RESNET_PIPELINE_DATA), or unset RAY_ADDRESS"
        )
    except UserError as error:
        return error


class _Worker:
    """Ray's actor. A user's error is returned, since Ray would wrap what is raised into its traceback."""

    def open(self, models: Mapping[str, Classifier], setting: _Setting) -> UserError | None:
        """Open the dataset, with the settings of this node (each has its own cache), and prepare the networks."""
        torch.set_num_threads(setting.threads)
        dataset = opened_there(setting.root, setting.dataset)
        if isinstance(dataset, UserError):
            return dataset
        self._device = local_device()
        self._plan = Plan(dataset=dataset, split=setting.split, protocol=setting.protocol, chunks=[])
        self._networks = prepare(models, setting.protocol, self._device, digests=setting.digests)
        return None

    def score(self, piece: Int64, names: Sequence[str]) -> dict[str, Scores] | UserError:
        """Return the scores of samples int64 [N] by the networks of these names."""
        own = Prepared({name: self._networks.nets[name] for name in names}, self._networks.digests)
        try:
            (found,) = score_chunks(own, replace(self._plan, chunks=[piece]), device=self._device)
        except UserError as error:
            return error
        return found


def _reason(error: Exception) -> str:
    """Return what Ray says first of a lost worker, without a full stop."""
    return lines_of(error)[0].rstrip(".")
