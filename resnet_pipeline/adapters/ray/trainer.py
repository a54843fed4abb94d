"""Ray Train's trainer, with what this project needs of it: elastic runs, and no process that has nothing to do."""

from __future__ import annotations

import time
import uuid
from typing import Any

from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.training.signals import SAVE, SAVED

_SECONDS_FOR_SAVING = 300.0


def trainer_class(counts: tuple[int, ...], run: RunDirectory | None, *, alone: bool, places: str | None = None) -> Any:
    """Return a DataParallelTrainer; with a run, which may have any of ``counts``, one that starts with these only.

    The names of its placement groups begin with ``places``, for `free_places`.

    Ray's own starts an actor for datasets of Ray's, of which we have none. If the cluster is this machine ``alone`` and
    ends with the driver, two more have nothing to do: one asks an autoscaler for nodes, the other frees what a lost
    controller held. Each costs seconds of a processor to start, and 0.8 % of one from then on.

    Example: ``trainer_class((2,), None, alone=True)(loop, scaling_config=ScalingConfig(num_workers=2)).fit()``
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    # the places that have names are freed without it, which without Ray's dashboard would look for the controller's end
    # for ever
    idle = (DatasetsCallback, PlacementGroupCleanerCallback) if alone or places else (DatasetsCallback,)
    policy = None  # Ray's own
    if run is not None:
        policy = _policy_of(counts, run, places)
    elif places:
        policy = _named_policy(places)
    elif alone:
        policy = _fixed_policy()

    class Trainer(DataParallelTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, idle)]

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            own = {} if policy is None else {"scaling_policy": policy(self.scaling_config)}
            return super()._initialize_and_run_controller(**{**arguments, **own})

    return Trainer


def _fixed_policy() -> Any:
    """Return the policy of one number of workers, without Ray's: it asks no autoscaler for them."""
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class NoAutoscaler(FixedScalingPolicy):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    return NoAutoscaler


def free_places(places: str) -> None:
    """Remove the placement groups that a lost process's trainer with such ``places`` has left.

    They are the detached actor's in which that process was, so they do not end with it if the actor is started again.

    Example: ``free_places(run.name)``
    """
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for identifier, entry in placement_group_table().items():
        if entry["name"].startswith(f"{places}/") and entry["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identifier))))


def name_placement_groups(places: str) -> None:
    """Let the worker groups of this process, a controller of Ray Train's, name their placement groups.

    Example: ``name_placement_groups(run.name)``
    """
    from ray.train.v2._internal.execution.worker_group import worker_group

    unnamed = worker_group.placement_group

    def named(*arguments: Any, **options: Any) -> Any:
        return unnamed(*arguments, **options, name=f"{places}/{uuid.uuid4().hex}")  # Ray Train has no option for it

    worker_group.placement_group = named


def _named_policy(places: str) -> Any:
    """Return the policy of one number of workers, whose places have names."""
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class Named(FixedScalingPolicy):  # type: ignore[misc]
        def after_controller_start(self, train_run_context: Any) -> None:
            name_placement_groups(places)
            super().after_controller_start(train_run_context)

    return Named


def _policy_of(counts: tuple[int, ...], run: RunDirectory, places: str | None) -> Any:
    """Return the policy of a run that may have any of ``counts`` workers.

    Ray's elastic policy takes any number in its range, also one that can't share the batch. And it ends the workers of
    a run that grows in the middle of what they do; here they are asked to save first.
    """
    checkpoints, signals = run.checkpoints, run.signals
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy,
        NoopDecision,
        ResizeDecision,
        ScalingDecision,
    )

    def saved() -> object:
        """Return what changes when the workers have saved."""
        return checkpoint_steps(checkpoints)[-1:] if signals.shared else signals.get(SAVED)

    class TheseCounts(ElasticScalingPolicy):  # type: ignore[misc]
        def __init__(self, scaling_config: Any) -> None:
            super().__init__(scaling_config)
            self._wanted: tuple[ScalingDecision, object, float] | None = None

        def after_controller_start(self, train_run_context: Any) -> None:
            if places:
                name_placement_groups(places)
            super().after_controller_start(train_run_context)

        # of the workers that there is room for, as many as the batch divides by
        def _count_possible_workers(self, reserved_resources: Any) -> int:
            possible = super()._count_possible_workers(reserved_resources)
            return max((count for count in counts if count <= possible), default=0)

        def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
            self._wanted = None
            return super().make_decision_for_non_running_worker_group()

        def make_decision_for_running_worker_group(self, **state: Any) -> ScalingDecision:
            # first ask the workers to save, then wait for their checkpoint, then resize
            if self._wanted is None:
                decision = super().make_decision_for_running_worker_group(**state)
                if not isinstance(decision, ResizeDecision):
                    return decision
                self._wanted = decision, saved(), time.monotonic()
                signals.put(SAVE)
                return NoopDecision()
            decision, before, since = self._wanted
            if saved() == before and time.monotonic() - since < _SECONDS_FOR_SAVING:
                return NoopDecision()
            self._wanted = None
            return decision

    return TheseCounts
