"""How a training is started: on Ray, in this process or under torchrun, with what around it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from resnet_pipeline.config import RunConfig
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.crew import Crew, alone, joined


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a training is started; none of it changes what is trained.

    ``launcher``: ``ray`` starts workers on a cluster, with ``local`` this process trains alone, and with ``torchrun``
    it is one of those that torchrun, or srun, has started. ``workers`` is a number or a range ("1-4": as many as there
    is room for, now and later); None takes every GPU of the cluster, or one worker if it has none, as far as the batch
    divides. ``max_failures`` workers or nodes may die on Ray. ``mirror`` is a folder or ``s3://`` address where
    checkpoints are kept too, and found if this root has none; None takes the environment's RESNET_PIPELINE_MIRROR.
    ``profile`` traces a few steps and names their bottleneck (``training.profile``). ``price`` is what an hour of the
    hardware costs; None is the environment's. With ``validate_aside`` another worker on Ray validates in mid-training
    while the others train on. ``tags`` are for the MLflow run: what has started it (``flows.shell``).
    """

    launcher: Literal["ray", "local", "torchrun"] = "ray"
    workers: int | str | None = None
    max_failures: int = 3
    mirror: str | None = None
    profile: bool = False
    price: float | None = None
    validate_aside: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)


def check_validated_aside(config: RunConfig, launch: Launch) -> None:
    """Raise UserError if training has to wait for its validations, or has nobody else to leave them to."""
    if launch.launcher != "ray":
        raise UserError(f"--validate-aside needs workers on Ray; leave it out with --launcher {launch.launcher}")
    if config.schedule.kind == "plateau":
        raise UserError(
            f"--validate-aside does not go with {config.recipe}: its learning rate follows the validation errors "
            "(schedule.kind=plateau), so training has to wait for each"
        )


def processes(launch: Launch) -> AbstractContextManager[Crew | None]:
    """Return what yields this process's crew, None if Ray starts the processes."""
    if launch.launcher == "ray":
        return nullcontext()
    return joined(launch.workers) if launch.launcher == "torchrun" else alone(launch.workers)
