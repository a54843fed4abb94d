"""Elastic training on Ray: which numbers of workers a run may have, and a checkpoint before each change of them."""

from __future__ import annotations

import time
from typing import Any

from resnet_pipeline.training.checkpoint import checkpoint_steps
from resnet_pipeline.training.run_directory import RunDirectory

_SECONDS_FOR_SAVING = 300.0


def trainer_class(counts: tuple[int, ...], run: RunDirectory | None) -> Any:
    """Return TorchTrainer; with a run, which may have any of ``counts``, one that starts and resizes to these only.

    Ray's elastic policy takes any number in its range, also one that can't share the batch. And it ends the workers of
    a run that grows in the middle of what they do; here they are asked to save first.
    """
    from ray.train.torch import TorchTrainer

    if run is None:
        return TorchTrainer
    checkpoints, save_request = run.checkpoints, run.save_request
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy,
        NoopDecision,
        ResizeDecision,
        ScalingDecision,
    )

    # the policy: which numbers, and when to change
    class TheseCounts(ElasticScalingPolicy):  # type: ignore[misc]
        def __init__(self, scaling_config: Any) -> None:
            super().__init__(scaling_config)
            self._wanted: tuple[ScalingDecision, list[int], float] | None = None

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
                self._wanted = decision, checkpoint_steps(checkpoints)[-1:], time.monotonic()
                save_request.touch()
                return NoopDecision()
            decision, newest, since = self._wanted
            saved = checkpoint_steps(checkpoints)[-1:] != newest
            if not saved and time.monotonic() - since < _SECONDS_FOR_SAVING:
                return NoopDecision()
            self._wanted = None
            return decision

    # the trainer that has this policy
    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            policy = TheseCounts(self.scaling_config)
            return super()._initialize_and_run_controller(**{**arguments, "scaling_policy": policy})

    return Trainer
