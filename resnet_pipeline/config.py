"""What a run is made of: frozen dataclasses that check themselves. There is no global configuration.

A recipe (``resnet_pipeline.recipes``) is a function that returns a complete :class:`RunConfig`. Two runs with equal
configs on the same dataset are the same run: :func:`config_hash` is a part of a run directory's name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from resnet_pipeline.errors import UserError, did_you_mean

T = TypeVar("T")


PAPER_SCALES = (224, 256, 384, 480, 640)
"""The shorter sides of the paper's multi-scale testing (section 3.4)."""


class ConfigError(UserError):
    """A config field has a value that cannot be; the text names the field."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network by name, as ``models.build_model`` takes it; the number of classes is the dataset's.

    ``shortcut`` None is the network's own (the paper: option B from 50 layers on, A on CIFAR-10).
    ``mean`` says what the first module subtracts: the dataset's mean image (the paper) or its mean colour.
    ``checkpointing`` k keeps only every k-th block's input for the backward pass, for memory; 0 keeps all.
    """

    name: str
    shortcut: Literal["A", "B", "C"] | None = None
    stride: Literal["v1", "v1.5"] = "v1"
    mean: Literal["image", "channel"] = "image"
    checkpointing: int = 0

    def __post_init__(self) -> None:
        _check(self.checkpointing >= 0, f"model.checkpointing must be at least 0, not {self.checkpointing}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How a training crop is drawn from its image.

    ``scale-crop``: shorter side uniform in ``shorter_side``, then a random square crop (the paper, section 3.4).
    ``random-resized-crop``: area uniform in ``area``, log-uniform aspect ratio in ``aspect`` (Szegedy et al., 2014).
    ``pad-crop``: ``pad`` pixels on each side, then a random square crop (the paper, section 4.2).
    ``color``: the standard deviation of the PCA colour noise (Krizhevsky et al., 2012: 0.1); 0 for none.
    """

    kind: Literal["scale-crop", "random-resized-crop", "pad-crop"]
    crop: int
    shorter_side: tuple[int, int] = (256, 480)
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 4
    flip: bool = True
    color: float = 0.0

    def __post_init__(self) -> None:
        _check(self.crop >= 1, f"augment.crop must be at least 1, not {self.crop}")
        low, high = self.shorter_side
        _check(
            self.kind != "scale-crop" or self.crop <= low <= high,
            f"augment.shorter_side must be [low, high] with crop <= low <= high, not {list(self.shorter_side)}",
        )
        _check(0 < self.area[0] <= self.area[1] <= 1, f"augment.area must lie in (0, 1], not {list(self.area)}")
        _check(0 < self.aspect[0] <= self.aspect[1], f"augment.aspect must be positive, not {list(self.aspect)}")
        _check(self.pad >= 0, f"augment.pad must be at least 0, not {self.pad}")
        _check(self.color >= 0, f"augment.color must be at least 0, not {self.color}")


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How the network is tested: ``crop`` pixels from an image whose shorter side is ``resize`` (the paper: 224, 256).

    ``scales`` are the shorter sides of the multi-scale protocol. ``flip`` False leaves the mirrored views out, for
    images whose mirror image means something else.
    """

    crop: int
    resize: int
    scales: tuple[int, ...] = PAPER_SCALES
    flip: bool = True

    def __post_init__(self) -> None:
        _check(self.crop >= 1, f"views.crop must be at least 1, not {self.crop}")
        _check(self.resize >= self.crop, f"views.resize must be at least views.crop ({self.crop}), not {self.resize}")
        _check(len(self.scales) > 0, "views.scales must name at least one shorter side")
        for scale in self.scales:
            _check(scale >= self.crop, f"views.scales must be at least views.crop ({self.crop}), not {scale}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """SGD with momentum as in Caffe: v = momentum · v + lr · (g + weight_decay · w); w = w − v."""

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        _check(self.lr > 0, f"optim.lr must be positive, not {self.lr}")
        _check(0 <= self.momentum < 1, f"optim.momentum must lie in [0, 1), not {self.momentum}")
        _check(self.weight_decay >= 0, f"optim.weight_decay must be at least 0, not {self.weight_decay}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate changes with the iteration.

    ``step``: times ``factor`` at each of ``boundaries`` (iterations). ``plateau``: times ``factor`` when the
    validation error has not improved by ``threshold`` percentage points for ``patience`` evaluations. ``cosine``:
    half a cosine to zero. Before any of them: ``warmup`` iterations, linear from zero, or, with ``warmup_lr``, at that
    constant rate until the training error is below ``warmup_until`` percent (ResNet-110: 0.01 until 80 %).
    """

    kind: Literal["step", "plateau", "cosine"] = "step"
    boundaries: tuple[int, ...] = ()
    factor: float = 0.1
    patience: int = 5
    threshold: float = 0.1
    warmup: int = 0
    warmup_lr: float | None = None
    warmup_until: float = 80.0

    def __post_init__(self) -> None:
        _check(0 < self.factor < 1, f"schedule.factor must lie between 0 and 1, not {self.factor}")
        _check(
            list(self.boundaries) == sorted(set(self.boundaries)),
            f"schedule.boundaries must increase, not {list(self.boundaries)}",
        )
        _check(self.patience >= 1, f"schedule.patience must be at least 1, not {self.patience}")
        _check(self.warmup >= 0, f"schedule.warmup must be at least 0, not {self.warmup}")
        _check(
            self.warmup_lr is None or self.warmup_lr > 0, f"schedule.warmup_lr must be positive, not {self.warmup_lr}"
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A complete recipe. Everything is counted in iterations (optimiser steps) and images.

    The gradient of ``batch`` images is the mean over micro-batches of ``micro_batch``, whoever computes them; batch
    normalisation sees one micro-batch at a time (the paper: 8 GPUs × 32 images). ``bn_images`` are averaged for the
    final batch-norm statistics; 0 keeps the moving averages.
    """

    recipe: str
    model: ModelConfig
    augment: AugmentConfig
    views: ViewConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    batch: int = 256
    micro_batch: int = 32
    steps: int
    eval_every: int = 5000
    checkpoint_every: int = 1000
    log_every: int = 50
    bn_images: int = 32_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "steps", "eval_every", "checkpoint_every", "log_every"):
            value = getattr(self, name)
            _check(value >= 1, f"{name} must be at least 1, not {value}")
        _check(self.bn_images >= 0, f"bn_images must be at least 0, not {self.bn_images}")
        _check(0 <= self.seed < 2**63, f"seed must be a non-negative 64-bit integer, not {self.seed}")
        _check(
            self.batch % self.micro_batch == 0,
            f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch})",
        )

    @property
    def micro_batches(self) -> int:
        """Micro-batches in one optimiser step."""
        return self.batch // self.micro_batch

    def check_workers(self, workers: int) -> None:
        """Raise ConfigError unless the micro-batches of a step divide evenly among the workers."""
        if workers < 1 or self.micro_batches % workers:
            good = [w for w in range(1, self.micro_batches + 1) if self.micro_batches % w == 0]
            raise ConfigError(
                f"workers={workers} can't share a batch of {self.batch} = {self.micro_batches} micro-batches of "
                f"{self.micro_batch}; {', '.join(map(str, good))} could"
            )


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON types."""
    return typing.cast("dict[str, Any]", json.loads(json.dumps(dataclasses.asdict(config))))


def from_dict(cls: type[T], values: Mapping[str, Any], *, where: str = "") -> T:
    """Build a config from plain JSON types; an unknown, missing or ill-typed field raises ConfigError with its name."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown field {where}{key}{did_you_mean(key, fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"missing field {where}{name}")
    return cls(**{key: _convert(hints[key], value, f"{where}{key}") for key, value in values.items()})


def with_overrides(config: T, assignments: Iterable[str]) -> T:
    """Return the config with ``key=value`` assignments applied; keys are dotted paths, values JSON or plain words.

    >>> with_overrides(config, ["optim.lr=0.05", "augment.shorter_side=[256, 288]"])
    """
    values = to_dict(config)
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        if not separator:
            raise ConfigError(f"{assignment!r} is not of the form key=value")
        target = values
        *parents, last = path.strip().split(".")
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                raise ConfigError(f"unknown field {path}{did_you_mean(parent, target)}")
            target = target[parent]
        if last not in target:
            raise ConfigError(f"unknown field {path}{did_you_mean(last, target)}")
        try:
            target[last] = json.loads(text)
        except json.JSONDecodeError:
            target[last] = text.strip()
    return from_dict(type(config), values)


def config_hash(config: Any) -> str:
    """Return the first 8 hexadecimal digits of the SHA-256 of the config as canonical JSON."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:8]


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            return from_dict(hint, value, where=f"{where}.")
        raise ConfigError(f"{where} must be a group of fields, not {value!r}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"{where} must be one of {', '.join(map(str, args))}, not {value!r}")
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise ConfigError(
                f"{where} must be a list{'' if args[-1] is Ellipsis else f' of {len(args)}'}, not {value!r}"
            )
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        return tuple(
            _convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value
