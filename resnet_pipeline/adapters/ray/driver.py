"""Ray: what directs a training on a cluster: an actor there, which outlives the process that has started it.

It holds the run's lease, has Ray Train's workers, and is what the run's processes speak through (`Control`). It ends
with its training. If its node is lost Ray starts it on another one, and the run resumes from its newest checkpoint.
Whoever has started the run, or starts it again, follows it by `Driver.look`. The run needs a home, where all that is
kept of it goes.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_pipeline.adapters.ray.aside import tested_aside
from resnet_pipeline.adapters.ray.cluster import Resources, ray_cluster
from resnet_pipeline.adapters.ray.run_control import Control, RunControl
from resnet_pipeline.adapters.ray.train import WorkerGroup, failure, is_lost
from resnet_pipeline.adapters.ray.trainer import free_places
from resnet_pipeline.errors import UnavailableError, UserError, lines_of
from resnet_pipeline.logs import configured
from resnet_pipeline.settings import for_driver
from resnet_pipeline.storage import storage_at
from resnet_pipeline.storage.base import HeldError
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.signals import ERROR, OWNER
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

_NAMESPACE = "resnet-pipeline"
_CALLS_AT_ONCE = 32  # of workers and of who follows; each takes microseconds
_SECONDS_TO_ANSWER = 5.0
_SECONDS_TO_BE_ASKED = 60.0  # how it has ended
_SECONDS_TO_GO = 30.0
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_FOR_A_LEASE = 300.0  # of the driver on the node that was lost, if the node lives and is merely cut off


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained, and how: the run's name, its home and that of its dataset, and a `WorkerGroup`'s arguments.

    ``root`` is that of each node, ``mirror`` a second place for checkpoints. With ``aside`` another worker validates.
    """

    run: str
    home: str
    root: Path
    dataset: str
    mirror: str | None
    counts: tuple[int, ...]
    resources: Resources
    max_failures: int
    aside: bool = False


@dataclass(frozen=True)
class End:
    """How a driver's work has ended: finished, or stopped and saved, or by an ``error``, which may pass."""

    error: str | None = None
    may_pass: bool = False


@dataclass(frozen=True, kw_only=True)
class Look:
    """How far a training is: the new lines of its metrics, whether workers have begun, and how it has ended if it has.

    ``start`` is another one if the driver was started again, with lines of its own.
    """

    start: str
    lines: list[bytes]
    begun: bool
    end: End | None


class _LeftError(Exception):
    pass


class _Driver(Control):
    """Ray's actor. Its thread does the work, while its methods answer."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        import ray

        context = ray.get_runtime_context()
        self._plan, self._actor = plan, context.current_actor
        self._again = context.was_current_actor_reconstructed
        self._start = uuid.uuid4().hex
        self._left = threading.Event()
        self._end: End | None = None
        threading.Thread(target=self._work, name="driver", daemon=True).start()

    def plan(self) -> Plan:
        """Return what it was told."""
        return self._plan

    def look(self, start: str, after: int) -> Look:
        """Return how far it is, without the first ``after`` lines if these are of this ``start``."""
        run, end = self._plan.run, self._end  # first: there are no lines after the end
        lines = self.lines(run, after if start == self._start else 0)
        return Look(start=self._start, lines=lines, begun=self.get(f"{run}/{OWNER}") is not None, end=end)

    def leave(self) -> None:
        """End without a word to the workers, which have not begun."""
        self._left.set()

    def _work(self) -> None:
        import ray

        end = End()
        with configured():
            try:
                self._drive()
            except _LeftError:
                pass
            except UserError as error:
                end = End(str(error), may_pass=isinstance(error, UnavailableError))
            except Exception as error:
                _log.exception("training failed")
                end = End(failure(error), may_pass=is_lost(error))
        self._end = end
        time.sleep(_SECONDS_TO_BE_ASKED)
        ray.kill(self._actor)

    def _drive(self) -> None:
        plan = self._plan
        workspace, control = Workspace(plan.root), RunControl(self._actor, plan.run)
        folder = workspace.cache / "drivers" / plan.run
        run = RunDirectory(folder, home=storage_at(plan.home), signals=control)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with ray_cluster(), self._lease(run) as check_alone:
                if self._again:
                    free_places(plan.run)
                group = WorkerGroup(
                    folder / "ray",
                    root=plan.root,
                    counts=plan.counts,
                    resources=plan.resources,
                    max_failures=plan.max_failures,
                    elastic=run if len(plan.counts) > 1 else None,
                    beside=1 if plan.aside else 0,
                    control=control,
                )
                try:
                    group.begin(run, plan.dataset, plan.mirror, aside=plan.aside)
                    with self._tests(run, workspace, group.cpus) as test:
                        self._wait_for(group, run, check_alone, test)
                except BaseException:
                    group.sound = False
                    raise
                finally:
                    group.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _wait_for(self, group: WorkerGroup, run: RunDirectory, *often: Callable[[], None]) -> None:
        while True:
            if (error := run.signals.get(ERROR)) is not None:
                if run.home:
                    run.home.write(ERROR, error.encode())
                raise UserError(error)
            if group.finished():
                return
            for call in often:
                call()
            if self._left.wait(_SECONDS_BETWEEN_LOOKS):
                raise _LeftError

    @contextlib.contextmanager
    def _tests(self, run: RunDirectory, workspace: Workspace, cpus: int) -> Iterator[Callable[[], None]]:
        plan = self._plan
        if not plan.aside:
            yield lambda: None
            return
        with tested_aside(run, workspace, plan.dataset, resources=plan.resources, cpus=cpus) as test:
            yield test

    @contextlib.contextmanager
    def _lease(self, run: RunDirectory) -> Iterator[Callable[[], None]]:
        """Have the run while inside; UserError if another process has it and this driver is not its successor."""
        deadline = time.monotonic() + (_SECONDS_FOR_A_LEASE if self._again else 0)
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    check = stack.enter_context(run.home_lease())
                    break
                except HeldError as error:
                    if time.monotonic() >= deadline:
                        raise UserError(
                            f"{run.address} is being trained; wait for that, or stop it ({error})"
                        ) from None
            yield check


class Driver:
    """A training on the joined cluster, for whoever follows it.

    Example: ``Driver.of(run.name) or Driver.start(plan)``
    """

    def __init__(self, actor: Any, run: str) -> None:
        self._actor, self._run = actor, run

    @classmethod
    def of(cls, run: str) -> Driver | None:
        """Return the one that trains a run now; None if there is none, or it has ended."""
        import ray

        deadline = time.monotonic() + _SECONDS_TO_GO
        while True:
            try:
                found = cls(ray.get_actor(run, namespace=_NAMESPACE), run)
            except ValueError:
                return None
            with contextlib.suppress(UnavailableError):
                look = found.look("", 0)
                if look is None or look.end is None:
                    return found
                found.dismiss()
            if time.monotonic() > deadline:  # Ray forgets an actor's name when its process has gone
                raise UnavailableError(f"the driver of {run} on the Ray cluster does not go; try again")
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    @classmethod
    def start(cls, plan: Plan) -> Driver:
        """Start one. It waits for a node that computes and has a free CPU, of which it then takes none."""
        import ray

        # With no word of CPUs Ray places an actor by one CPU, which it leaves to others then. So it comes to no node
        # that computes nothing: neither the head, nor a Prefect worker's pod, which comes and goes.
        actor = ray.remote(_Driver).options(
            name=plan.run,
            namespace=_NAMESPACE,
            lifetime="detached",
            max_restarts=plan.max_failures,
            max_concurrency=_CALLS_AT_ONCE,
            runtime_env={"env_vars": for_driver()},
        )
        return cls(actor.remote(plan), plan.run)

    @property
    def signals(self) -> RunControl:
        """By which the run's workers hear."""
        return RunControl(self._actor, self._run)

    def plan(self) -> Plan | None:
        """Return what it was told; None if it does not answer now."""
        found: Plan | None = self._asked("plan")
        return found

    def look(self, start: str, after: int) -> Look | None:
        """Return how far it is, without the first ``after`` lines of this ``start``; None if it does not answer now.

        That is so while it waits for a node, and while Ray starts it again. UnavailableError if it was lost for good.
        """
        found: Look | None = self._asked("look", start, after)
        return found

    def leave(self) -> None:
        """Let it end at once, since its workers have not begun."""
        self._asked("leave")

    def dismiss(self) -> None:
        """Let its process go."""
        import ray

        ray.kill(self._actor)

    def _asked(self, method: str, *arguments: Any) -> Any:
        import ray

        try:
            return ray.get(getattr(self._actor, method).remote(*arguments), timeout=_SECONDS_TO_ANSWER)
        except ray.exceptions.ActorDiedError as error:
            raise UnavailableError(f"the driver on the Ray cluster was lost: {lines_of(error)[-1]}") from error
        except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
            return None
        except Exception as error:
            if is_lost(error):
                raise UnavailableError(f"the Ray cluster was lost: {error}") from error
            raise
