"""What a report shows, as plain data; errors in percent."""

from __future__ import annotations

from dataclasses import dataclass, field

from resnet_pipeline.report.model_card import MeasuredErrors


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A quantity against the iteration."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One trained network: what it is, how it did under each protocol that it was tested under, how it got there.

    ``images_per_second`` and ``seconds`` are training's, ``test_images_per_second`` the last protocol's, None if it was
    not tested under that. ``used`` says the worker-hours of all its starts, and their price.
    """

    name: str
    run: str
    depth: int
    parameters: int
    multiply_adds: int
    errors: dict[str, MeasuredErrors]
    images_per_second: float
    seconds: float
    test_images_per_second: float | None
    train_loss: Curve
    train_error: Curve
    val_error: Curve
    used: str = ""
    registered: str | None = None
    mlflow_run: str | None = None
    paper_error: float | None = None
    paper_source: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The members' averaged probabilities: errors under each protocol that all were tested under, on ``samples``."""

    members: list[str]
    errors: dict[str, MeasuredErrors]
    samples: int
    test_images_per_second: float


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """A whole report."""

    title: str
    dataset_name: str
    dataset_fingerprint: str
    classes: int
    samples: dict[str, int]
    refused: int
    members: list[Member]
    ensemble: Ensemble | None
    environment: dict[str, str]
    created: str
    commands: list[tuple[str, str]] = field(default_factory=list)

    @property
    def protocols(self) -> list[str]:
        """The protocols that the members were tested under, in order."""
        return list(dict.fromkeys(p for member in self.members for p in member.errors))

    def best(self, protocol: str) -> Member:
        """Return the member with the lowest top-1 error under one of the protocols."""
        return min((m for m in self.members if protocol in m.errors), key=lambda m: m.errors[protocol].top1)
