"""The typed, documented parameters that the flows share; Prefect's UI shows them as a form and checks them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_type_hints

from pydantic import Field
from pydantic.fields import FieldInfo

P = ParamSpec("P")
R = TypeVar("R")


def documented(function: Callable[P, R]) -> Callable[P, R]:
    """Append the parameters' descriptions to the docstring, from where Prefect takes them for its form.

    Prefect (3.8) overwrites the descriptions that pydantic's ``Field`` gives with those of the docstring.
    """
    lines = [inspect.cleandoc(function.__doc__ or ""), "", "Args:"]
    for name, hint in get_type_hints(function, include_extras=True).items():
        fields = [field for field in get_args(hint)[1:] if isinstance(field, FieldInfo)]
        lines += [f"    {name}: {field.description}" for field in fields if field.description]
    function.__doc__ = "\n".join(lines) + "\n"
    return function


DatasetName = Annotated[str, Field(description="Name of a staged dataset (the flow stage-dataset makes one).")]
Steps = Annotated[
    int | None, Field(ge=1, description="Optimiser steps; empty for the recipe's own number.", title="Steps")
]
Workers = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^\d+(-\d+)?$")] | None,
    Field(
        description="Training processes, a GPU each where there are any; 1-4 for as many as there is room for; empty "
        "for all GPUs, or one on a CPU."
    ),
]
Seed = Annotated[int, Field(ge=0, description="Decides initial weights, sample order and augmentation.")]
Overrides = Annotated[
    dict[str, Any],
    Field(description='Fields of the recipe to change, by dotted name: {"batch": 8, "optim.lr": 0.01}.'),
]
Protocol = Literal["center", "10-crop", "multi-scale"]
ProtocolName = Annotated[
    Protocol,
    Field(description="One centre crop; corners and centre, mirrored too; or whole images at several sizes."),
]
Protocols = Annotated[list[Protocol], Field(description="How the finished network is tested.")]
EvaluationImages = Annotated[
    int | None, Field(ge=1, description="Test on this many evenly spaced images only; empty for all.")
]
Scales = Annotated[
    list[int] | None,
    Field(description="Shorter sides to average over, as [224, 256, 384]; empty for each network's own."),
]
Average = Annotated[
    Literal["softmax", "logits"],
    Field(description="What is averaged over views: softmax, as the authors did, or logits."),
]
Combined = Annotated[
    Literal["probabilities", "logits"], Field(description="What is averaged over the members of an ensemble.")
]
EvaluationWorkers = Annotated[
    int | None,
    Field(ge=1, description="Tasks on Ray at a time; empty for all of RAY_ADDRESS's cluster, else this process alone."),
]
Registered = Annotated[bool, Field(description="Register the finished network in MLflow's model registry.")]
ModelReference = Annotated[
    str,
    Field(
        min_length=1,
        description="A registered model's NAME or NAME@ALIAS, a run's id or directory, or NETWORK=WEIGHTS-FILE.",
    ),
]
RegisteredAs = Annotated[
    str | None,
    Field(description="Register the ensemble in MLflow under this name; its members must be registered. Empty: don't."),
]
