"""What a run is made of: frozen dataclasses that check themselves. There is no global configuration.

A recipe (``resnet_pipeline.recipes``) is a function that returns a complete :class:`RunConfig`. Two runs with equal
configs on the same dataset are the same run: their hash (``config_io``) is a part of a run directory's name.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from resnet_pipeline.errors import UserError

Precision = Literal["float32", "bf16", "float64", "auto"]
_MOST_STEPS = 10_000_000  # the paper's longest run has 600,000


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
    """SGD with momentum as in Caffe: v = momentum · v + lr · (g + weight_decay · w); w = w − v.

    ``decay_norm`` False spares batch norm's parameters and the biases the weight decay (Goyal et al., 2017).
    ``label_smoothing`` ε trains towards (1 − ε) · label + ε / classes (Szegedy et al., 2015, section 7).
    ``ema`` d > 0 averages the weights, a = d · a + (1 − d) · w after each step (``training.ema``); the finished
    network has the average.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norm: bool = True
    label_smoothing: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        _check(0 < self.lr < math.inf, f"optim.lr must be positive and finite, not {self.lr}")
        _check(0 <= self.momentum < 1, f"optim.momentum must lie in [0, 1), not {self.momentum}")
        _check(
            0 <= self.weight_decay < math.inf,
            f"optim.weight_decay must be at least 0 and finite, not {self.weight_decay}",
        )
        _check(0 <= self.label_smoothing < 1, f"optim.label_smoothing must lie in [0, 1), not {self.label_smoothing}")
        _check(0 <= self.ema < 1, f"optim.ema must lie in [0, 1), not {self.ema}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate changes with the iteration.

    ``step``: times ``factor`` at each of ``boundaries`` (iterations). ``plateau``: times ``factor`` when the
    validation error has not improved by ``threshold`` percentage points for ``patience`` evaluations. ``cosine``:
    half a cosine to zero. Before any of them: ``warmup`` iterations, linear from zero, or, with ``warmup_lr``, at that
    constant rate until the training error is below ``warmup_until`` percent (ResNet-110: 0.01 until 80 %). A schedule
    that would not be over with the run's last iteration is refused (`RunConfig`).
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
            list(self.boundaries) == sorted(set(self.boundaries)) and all(b >= 1 for b in self.boundaries),
            f"schedule.boundaries must increase from at least 1, not {list(self.boundaries)}",
        )
        _check(self.patience >= 1, f"schedule.patience must be at least 1, not {self.patience}")
        # below 0 a worse error would count as better, and the plateau would never be seen
        _check(self.threshold >= 0, f"schedule.threshold must be at least 0, not {self.threshold}")
        _check(self.warmup >= 0, f"schedule.warmup must be at least 0, not {self.warmup}")
        _check(
            self.warmup_lr is None or 0 < self.warmup_lr < math.inf,
            f"schedule.warmup_lr must be positive and finite, not {self.warmup_lr}",
        )
        _check(
            self.warmup_lr is None or self.warmup == 0,
            "schedule.warmup and schedule.warmup_lr are two kinds of warm-up: set one of them",
        )
        _check(
            0 < self.warmup_until <= 100,
            f"schedule.warmup_until must lie in (0, 100], not {self.warmup_until}: the warm-up would never end",
        )


@dataclass(frozen=True, kw_only=True)
class GrowthConfig:
    """Training crops that grow from ``first`` pixels to ``augment.crop`` (Howard, 2018; Tan and Le, 2021).

    The first ``until`` of the run's iterations is cut into ``phases`` − 1 equal parts, the rest is the last phase, at
    the full size. Sizes are rounded to multiples of ``multiple``. ``first`` 0: all crops have the full size.
    """

    first: int = 0
    phases: int = 4
    until: float = 0.75
    multiple: int = 32

    def __post_init__(self) -> None:
        _check(self.first >= 0, f"growth.first must be at least 0, not {self.first}")
        _check(self.phases >= 2, f"growth.phases must be at least 2, not {self.phases}")
        _check(0 < self.until < 1, f"growth.until must lie between 0 and 1, not {self.until}")
        _check(self.multiple >= 1, f"growth.multiple must be at least 1, not {self.multiple}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A complete recipe. Everything is counted in iterations (optimiser steps) and images.

    The gradient of ``batch`` images is the mean over micro-batches of ``micro_batch``, whoever computes them; batch
    normalisation sees one micro-batch at a time (the paper: 8 GPUs × 32 images). ``bn_images`` are averaged for the
    final batch-norm statistics; 0 keeps the moving averages. ``order`` shuffles the whole epoch (``full``) or, for data
    that comes from S3, shards and then the samples within each block of ``block_shards`` of them (``block``).
    ``precision`` bf16 computes convolutions and products in bfloat16 (autocast; weights, batch norm, loss and updates
    stay float32, so no loss scaling is needed); ``auto`` is bf16 if the hardware has it, else float32; float64 is for
    comparisons. ``compile`` runs the network through
    torch.compile with CUDA graphs on a GPU; on a CPU it is ignored: it did not pay there (docs/LOG.md).
    """

    recipe: str
    model: ModelConfig
    augment: AugmentConfig
    views: ViewConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    precision: Precision = "float32"
    compile: bool = False
    batch: int = 256
    micro_batch: int = 32
    steps: int
    eval_every: int = 5000
    checkpoint_every: int = 1000
    log_every: int = 50
    bn_images: int = 32_000
    seed: int = 0
    order: Literal["full", "block"] = "full"
    block_shards: int = 16

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "steps", "eval_every", "checkpoint_every", "log_every", "block_shards"):
            value = getattr(self, name)
            _check(value >= 1, f"{name} must be at least 1, not {value}")
        _check(self.bn_images >= 0, f"bn_images must be at least 0, not {self.bn_images}")
        _check(0 <= self.seed < 2**63, f"seed must be a non-negative 64-bit integer, not {self.seed}")
        _check(
            self.batch % self.micro_batch == 0,
            f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch})",
        )
        # an average has no statistics of its own to fall back on
        _check(self.optim.ema == 0 or self.bn_images > 0, "bn_images must be at least 1 with optim.ema, not 0")
        self._check_end()
        self._check_growth()

    def _check_end(self) -> None:
        """Raise ConfigError, with the field's name, unless the schedule ends within ``steps``."""
        schedule, steps = self.schedule, self.steps
        _check(steps <= _MOST_STEPS, f"steps must be at most {_MOST_STEPS:,}, not {steps:,}: such a run never ends")
        _check(
            schedule.warmup < steps,
            f"schedule.warmup ({schedule.warmup}) must be below steps ({steps}): the warm-up would never end",
        )
        beyond = [b for b in schedule.boundaries if b >= steps] if schedule.kind == "step" else []
        _check(
            not beyond,
            f"schedule.boundaries: {', '.join(map(str, beyond))} can't be reached in {steps} steps; name smaller "
            "ones, or [] for a constant rate",
        )

    def _check_growth(self) -> None:
        first, crop = self.growth.first, self.augment.crop
        if first:
            _check(first <= crop, f"growth.first must be at most augment.crop ({crop}), not {first}")
            _check(
                self.augment.kind != "pad-crop", "growth.first can't apply to augment.kind pad-crop: its crop is fixed"
            )

    def crop_at(self, step: int) -> int:
        """Return the side of the training crops of the iteration that follows ``step`` finished ones, in pixels."""
        growth, crop = self.growth, self.augment.crop
        if growth.first == 0:
            return crop
        # in whole numbers, so that every process finds the same phase
        last = max(1, round(growth.until * self.steps))
        phase = min(growth.phases - 1, step * (growth.phases - 1) // last)
        if phase == growth.phases - 1:
            return crop
        size = growth.first + (crop - growth.first) * phase / (growth.phases - 1)
        return max(growth.first, min(crop, growth.multiple * round(size / growth.multiple)))

    def augment_at(self, step: int) -> AugmentConfig:
        """Return the augmentation of an iteration: `crop_at`'s size, the same field of view."""
        size, full = self.crop_at(step), self.augment
        low, high = full.shorter_side
        return dataclasses.replace(
            full, crop=size, shorter_side=(max(size, low * size // full.crop), max(size, high * size // full.crop))
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
