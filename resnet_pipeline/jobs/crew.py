"""The processes that train a run if Ray starts none: this one alone, or those that torchrun started.

Rank 0 prepares the run and tells the others of it; it alone shows, tracks and registers. The others only train.
"""

from __future__ import annotations

import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from resnet_pipeline.data.dataset import Dataset, open_dataset_at
from resnet_pipeline.detection import task_of
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import ToldError, UserError
from resnet_pipeline.files import WriteError, replacing
from resnet_pipeline.parallel import cores
from resnet_pipeline.settings import ROOT_VARIABLE, torchrun, variable
from resnet_pipeline.storage import storage_at
from resnet_pipeline.training.attempt import TakenOverError
from resnet_pipeline.training.context import Context, LocalContext, torchrun_context
from resnet_pipeline.training.distributed import from_rank_zero
from resnet_pipeline.training.loop import NonFiniteError, train
from resnet_pipeline.training.mirror import adopt, mirror_of
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.stopping import stop_on_signals
from resnet_pipeline.training.watchdog import HangError
from resnet_pipeline.workspace import Workspace

_SECONDS_FOR_THE_REASON = 3.0  # until the process that failed has written why; on a network drive a while


@dataclass(frozen=True)
class Order:
    """What rank 0 has the others train: a run's folder and home, a dataset's address, and a mirror."""

    run: str
    home: str | None
    dataset: str
    mirror: str | None


class Crew:
    """One of the processes that train a run together."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ordered = False

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self._context.rank == 0

    @property
    def size(self) -> int:
        """The number of processes."""
        return self._context.world_size

    def train(self, run: RunDirectory, dataset: Dataset, mirror: str | None) -> None:
        """Let all train the run, this process too: rank 0 calls it, the others are in `follow`.

        Returns when the run is finished, or was asked to stop and has saved its state. Raises UserError for what ended
        it in any of the processes.
        """
        self._tell(Order(str(run.path), run.home.url if run.home else None, dataset.storage.url, mirror))
        self._train(run, dataset, mirror)

    def follow(self, workspace: Workspace) -> None:
        """Train what rank 0 says, if it says anything; ToldError if rank 0 or another process says what went wrong."""
        order = from_rank_zero(None, self.size)
        if order is None:
            return
        if isinstance(order, str):
            raise ToldError(order)
        path = Path(order.run)
        run = RunDirectory(path, home=storage_at(order.home) if order.home else None)
        if run.home and not path.exists():
            run = run.elsewhere(workspace.runs / path.name)
            adopt(run, weights=False)
        if not run.path.exists():
            raise UserError(
                f"{socket.gethostname()} does not see {path}: share {ROOT_VARIABLE}, or name a place for runs that all "
                f"nodes reach with {variable('runs')}"
            )
        # with the settings of its own node: each has its own cache
        self._train(run, open_dataset_at(workspace, order.dataset), order.mirror)

    def dismiss(self, error: BaseException | None = None) -> None:
        """Send the others home, unless they were told what to train; they end as rank 0 does."""
        if self.leads and not self._ordered:
            self._tell(None if error is None else str(error))

    def _tell(self, order: Order | str | None) -> None:
        self._ordered = True
        from_rank_zero(order, self.size)

    def _train(self, run: RunDirectory, dataset: Dataset, mirror: str | None) -> None:
        recipe = run.config().recipe
        try:
            task = task_of(run.config(), dataset, self._context, run=run)
            train(run, dataset, self._context, mirror=mirror_of(run, mirror), task=task)
        except TakenOverError:
            raise  # a later attempt resumes the run; what it does is no concern of this one's
        except UserError as error:
            # where the others look for the reason; a disk that is full must not take its place
            with suppress(WriteError), replacing(run.error_file) as temporary:
                temporary.write_text(str(error))
            # that a loss is not finite all find out together
            silent = isinstance(error, NonFiniteError) and not self.leads
            raise (ToldError if silent else UserError)(f"{recipe}: {error}") from error
        except HangError as error:
            raise UserError(f"{recipe}: {error}") from error
        except RuntimeError as error:
            if self.size == 1 or not _lost(error):
                raise
            reason = _reason(run)
            if reason is None:
                raise UserError(f"{recipe}: another process of this run ended; the same command resumes it") from error
            raise (UserError if self.leads else ToldError)(f"{recipe}: {reason}") from error


@contextmanager
def found_by_all(launcher: str) -> Iterator[None]:
    """Inside, every process that torchrun started meets the same errors: rank 0 raises them, the others ToldError."""
    try:
        yield
    except UserError as error:
        if launcher == "torchrun" and torchrun().rank:
            raise ToldError(str(error)) from error
        raise


@contextmanager
def alone(workers: int | str | None) -> Iterator[Crew]:
    """Yield a crew of this process alone, which may use all of the machine's cores; UserError for more workers."""
    if workers is not None and str(workers) != "1":
        raise UserError(f"--launcher local trains in this process alone, not with --workers {workers}; leave one out")
    with stop_on_signals(leave_at_once=True) as stop:
        yield _crew(LocalContext(device=local_device(), stop=stop), 1)


@contextmanager
def joined(workers: int | str | None) -> Iterator[Crew]:
    """Yield the crew of the processes that torchrun started; all of them come here.

    SIGTERM and Ctrl-C make it save and stop. Raises UserError if nothing started several, or they can't meet.
    """
    found = torchrun()
    missing = [name.upper() for name in ("rank", "world_size", "master_addr", "master_port") if not _given(name)]
    if missing:
        raise UserError(
            f"--launcher torchrun needs what torchrun tells its processes, and {', '.join(missing)} is not set; "
            "start it as torchrun --nproc-per-node 2 --no-python resnet-pipeline train …"
        )
    with found_by_all("torchrun"):
        if workers is not None and str(workers) != str(found.world_size):
            raise UserError(f"--workers {workers}, but torchrun started {found.world_size} process(es); leave it out")
    with ExitStack() as stack:
        try:
            context = stack.enter_context(torchrun_context())
        except (RuntimeError, ValueError) as error:
            where = f"{found.master_addr}:{found.master_port}"
            reason = str(error).splitlines()[0]
            raise UserError(f"rank {found.rank} can't meet the other processes at {where}: {reason}") from error
        crew = _crew(context, found.local_world_size)
        try:
            yield crew
        except BaseException as error:
            crew.dismiss(error)
            raise
        crew.dismiss()


def _given(name: str) -> bool:
    return name in torchrun().model_fields_set


def _crew(context: Context, here: int) -> Crew:
    """Return a crew whose ``here`` processes on this machine share its cores, as Ray's workers do."""
    # nobody could act on it, and it would come from every process: what replaces the argument does another thing
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # whatever OMP_NUM_THREADS says: on another number of threads the last bits of the weights are others
    torch.set_num_threads(max(1, cores() // here))
    return Crew(context)


def _lost(error: RuntimeError) -> bool:
    """Return whether a collective failed since a process has ended."""
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(
        words in text for words in ("connection closed", "connection reset", "broken pipe", "gloo")
    )


def _reason(run: RunDirectory) -> str | None:
    """Return what the process that failed has written, if it was something for the user to mend."""
    deadline = time.monotonic() + _SECONDS_FOR_THE_REASON
    while not run.error_file.exists():
        if time.monotonic() > deadline:
            return None
        time.sleep(0.1)
    return run.error_file.read_text()
