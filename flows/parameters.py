"""The typed, documented parameters that the flows share; Prefect's UI shows them as a form and checks them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

DatasetName = Annotated[str, Field(description="Name of a staged dataset (the flow stage-dataset makes one).")]
Steps = Annotated[
    int | None, Field(ge=1, description="Optimiser steps; empty for the recipe's own number.", title="Steps")
]
Workers = Annotated[
    int | None,
    Field(ge=1, description="Training processes, a GPU each where there are any; empty for all GPUs, or one on a CPU."),
]
Seed = Annotated[int, Field(ge=0, description="Decides initial weights, sample order and augmentation.")]
Overrides = Annotated[
    dict[str, Any],
    Field(description='Fields of the recipe to change, by dotted name: {"batch": 8, "optim.lr": 0.01}.'),
]
ProtocolName = Literal["center", "10-crop", "multi-scale"]
Protocols = Annotated[list[ProtocolName], Field(description="How the finished network is tested.")]
EvaluationImages = Annotated[
    int | None, Field(ge=1, description="Test on this many evenly spaced images only; empty for all.")
]
Registered = Annotated[bool, Field(description="Register the finished network in MLflow's model registry.")]
ModelReference = Annotated[
    str, Field(min_length=1, description="models:/NAME@ALIAS, runs:/ID, a run directory, or NETWORK=WEIGHTS-FILE.")
]
