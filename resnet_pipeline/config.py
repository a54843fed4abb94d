"""What a run is made of: frozen dataclasses that check themselves. There is no global configuration.

A recipe (``resnet_pipeline.recipes``) is a function that returns a complete :class:`RunConfig`. Two runs with equal
configs on the same dataset are the same run: their hash (``config_io``) is a part of a run directory's name.

The text under each field says what its values mean, in which unit, and whose convention it is; "the paper" is He et
al., 2015. `resnet-pipeline recipes RECIPE` prints these texts (``config_io.described``).
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from resnet_pipeline.errors import UserError
from resnet_pipeline.records import OMIT_NONE

TaskName = Literal["classification", "detection", "localisation"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
"""What networks are trained for: classes, objects, or a box for each class."""

Precision = Literal["float32", "tf32", "bf16", "float64", "auto"]
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
    """A network by name, as ``models.build_model`` takes it; the number of classes is the dataset's."""

    name: str
    """The network: resnet50, plain34, cifar-resnet20, … (the paper, Table 1 and section 4.2)."""
    shortcut: Literal["A", "B", "C"] | None = None
    """Where a block changes the size: A pads with zeros, B projects there, C projects in every block (the paper,
    Table 3). Unset: A up to 34 layers and on CIFAR-10, B from 50 layers on."""
    stride: Literal["v1", "v1.5"] = "v1"
    """Which convolution of a bottleneck has stride 2: v1 its first, 1×1 (the paper), v1.5 its 3×3 (torchvision)."""
    pooling: Literal["pytorch", "caffe"] | None = field(default=None, metadata=OMIT_NONE)
    """How ImageNet's networks pad their max-pooling: pytorch by one on each side, caffe nothing, as the authors'
    released networks. Unset: pytorch."""
    mean: Literal["image", "channel"] = "image"
    """What the first module subtracts: the training images' mean image (the paper, section 3.4) or mean colour."""
    checkpointing: int = 0
    """Blocks per stored activation: only every k-th block's input is kept for the backward pass, which saves memory
    and costs time (Chen et al., 2016); 0 keeps all."""
    last_gamma: float | None = field(default=None, metadata=OMIT_NONE)
    """Scale at the start of each residual block's last batch norm: 0 makes every block an identity at first (Goyal et
    al., 2017, section 5.1). Unset: 1, as the paper's networks have it."""
    initial_weights: str | None = field(default=None, metadata=OMIT_NONE)
    """SHA-256 of the weights that training begins with, as `train --initial-weights` sets it; its preprocessing comes
    with them. Unset: random weights (He et al., 2015, "Delving Deep into Rectifiers")."""
    initial_head: Literal["kept", "fresh"] | None = field(default=None, metadata=OMIT_NONE)
    """Of initial_weights: whether training begins with their classifier too, or with a random one."""

    def __post_init__(self) -> None:
        _check(
            self.last_gamma is None or "resnet" in self.name,
            f"model.last_gamma is for residual networks: without shortcuts {self.name} would learn nothing from 0",
        )
        _check(self.checkpointing >= 0, f"model.checkpointing must be at least 0, not {self.checkpointing}")
        _check(
            self.initial_weights is None or re.fullmatch(r"[0-9a-f]{64}", self.initial_weights) is not None,
            f"model.initial_weights must be a SHA-256, 64 digits, not {self.initial_weights!r}; --initial-weights "
            "takes the name of a network",
        )
        _check(
            self.initial_weights is None or self.initial_head is not None,
            "model.initial_weights needs model.initial_head: kept or fresh",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How a training crop is drawn from its image."""

    kind: Literal["scale-crop", "random-resized-crop", "pad-crop", "whole-image", "region"]
    """scale-crop: a random square of the resized image (the paper, section 3.4). random-resized-crop: a random part,
    resized (Szegedy et al., 2014). pad-crop: a random square of the padded image (the paper, section 4.2). whole-image:
    the resized image, for detection (appendix A). region: a part that a localiser proposes, warped (appendix C)."""
    crop: int
    """Side of the crop that the network is trained on, in pixels (the paper: 224; CIFAR-10: 32); not of whole-image."""
    shorter_side: tuple[int, int] = (256, 480)
    """Of scale-crop and whole-image: least and greatest shorter side that an image is resized to, in pixels, drawn
    uniformly (the paper, section 3.4: 256 to 480; appendix A: 600)."""
    area: tuple[float, float] = (0.08, 1.0)
    """Of random-resized-crop: least and greatest part of the image's area, drawn uniformly (Szegedy et al., 2014)."""
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Of random-resized-crop: least and greatest width / height, drawn log-uniformly (Szegedy et al., 2014)."""
    pad: int = 4
    """Of pad-crop: pixels of padding on each side, in the mean colour (the paper, section 4.2: 4)."""
    flip: bool = True
    """Whether half of the crops are mirrored left to right (the paper, sections 3.4 and 4.2)."""
    color: float = 0.0
    """Standard deviation of the PCA colour noise, without unit (Krizhevsky et al., 2012, section 4.1: 0.1); 0: none."""

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
    """How the network is tested."""

    crop: int
    """Side of the crops of the protocols center and 10-crop, in pixels (the paper: 224; CIFAR-10: 32)."""
    resize: int
    """Shorter side that an image is resized to before it is cropped, in pixels (Krizhevsky et al., 2012: 256)."""
    scales: tuple[int, ...] = PAPER_SCALES
    """Shorter sides of the protocol multi-scale, in pixels (the paper, section 3.4: 224, 256, 384, 480, 640)."""
    flip: bool = True
    """Whether mirrored views are tested too (the paper); false for images whose mirror image means something else."""

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
    """Learning rate at the start, of the mean gradient of a batch (the paper, section 3.4: 0.1)."""
    momentum: float = 0.9
    """Part of the last update that is kept (the paper, section 3.4: 0.9)."""
    weight_decay: float = 1e-4
    """Weight decay, added to the gradient as a multiple of the weights (the paper, section 3.4: 0.0001)."""
    decay_norm: bool = True
    """Whether batch norm's scales and shifts and all biases decay too, not the weights of convolutions and classifier
    alone. The paper does not say; fb.resnet.torch, whose decay does, lists that as a difference from it. So its recipes
    have false (docs/DEVIATIONS.md)."""
    label_smoothing: float = 0.0
    """ε: the target is (1 − ε) · label + ε / classes (Szegedy et al., 2015, section 7); 0: the label (the paper)."""
    trust: float | None = field(default=None, metadata=OMIT_NONE)
    """LARS' trust coefficient η: the update of each convolution and of the classifier is scaled to η times the norm of
    its weights, for very large batches (You et al., 2017, equation 6: 0.001). Unset: no scaling (the paper)."""
    frozen_stages: int | None = field(default=None, metadata=OMIT_NONE)
    """First layers that stay as they are, batch norm's statistics too: 0 the stem, k also the stages up to k, all of
    them a linear probe (as mmpretrain's frozen_stages). Unset: none (the paper)."""
    norm_eval: bool | None = field(default=None, metadata=OMIT_NONE)
    """Whether all batch norm keeps its running statistics and uses them in training too (as mmpretrain's norm_eval);
    its scales and shifts are learned. Unset: no (the paper)."""
    layer_decay: float | None = field(default=None, metadata=OMIT_NONE)
    """Factor by which each stage's rate is lower than that of the one above it; the classifier has lr itself (as timm's
    layer-decay). Unset: one rate for all (the paper)."""
    ema: float = 0.0
    """Decay d of the averaged weights, a = d · a + (1 − d) · w after each step, which the finished network has
    (training/ema.py); 0: no average (the paper)."""

    def __post_init__(self) -> None:
        _check(0 < self.lr < math.inf, f"optim.lr must be positive and finite, not {self.lr}")
        _check(0 <= self.momentum < 1, f"optim.momentum must lie in [0, 1), not {self.momentum}")
        _check(
            0 <= self.weight_decay < math.inf,
            f"optim.weight_decay must be at least 0 and finite, not {self.weight_decay}",
        )
        _check(0 <= self.label_smoothing < 1, f"optim.label_smoothing must lie in [0, 1), not {self.label_smoothing}")
        _check(
            self.trust is None or 0 < self.trust < 1,
            f"optim.trust must lie in (0, 1), not {self.trust}; leave it out for no scaling",
        )
        _check(
            self.trust is None or not self.decay_norm,
            "optim.trust scales the layers that decay, which batch norm's must not be: set optim.decay_norm to false",
        )
        _check(
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            f"optim.layer_decay must lie in (0, 1], not {self.layer_decay}",
        )
        _check(0 <= self.ema < 1, f"optim.ema must lie in [0, 1), not {self.ema}")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate changes with the iteration.

    A schedule that would not be over with the run's last iteration is refused (`RunConfig`).
    """

    kind: Literal["step", "plateau", "cosine", "square"] = "step"
    """step: lower at fixed iterations (the paper, section 4.2). plateau: lower when the error stops falling (section
    3.4). cosine: half a cosine to zero (Loshchilov and Hutter, 2016). square: falls to zero as the square of the part
    that is left (You et al., 2017, section 6: a polynomial of power 2)."""
    boundaries: tuple[int, ...] = ()
    """Of step: the iterations at which the rate is lowered (the paper, section 4.2: 32,000 and 48,000)."""
    factor: float = 0.1
    """Of step and plateau: what the rate is multiplied by (the paper, section 3.4: "divided by 10")."""
    patience: int = 5
    """Of plateau: evaluations without improvement before the rate is lowered; the paper gives no number."""
    threshold: float = 0.1
    """Of plateau: how much lower the validation error must be, in percentage points; the paper gives no number."""
    most_drops: int | None = field(default=None, metadata=OMIT_NONE)
    """Of plateau: how often the rate is lowered at most, so that it has a floor; the paper gives no number. Unset:
    without end."""
    warmup: int = 0
    """Iterations in which the rate rises linearly from zero (Goyal et al., 2017); 0: none (the paper)."""
    warmup_lr: float | None = None
    """Constant rate at the start, until the error is below warmup_until (the paper, section 4.2: 0.01 for 110 layers);
    unset: none."""
    warmup_until: float = 80.0
    """With warmup_lr: the training error that ends it, in percent (the paper, section 4.2: 80)."""

    def __post_init__(self) -> None:
        _check(0 < self.factor < 1, f"schedule.factor must lie between 0 and 1, not {self.factor}")
        _check(
            list(self.boundaries) == sorted(set(self.boundaries)) and all(b >= 1 for b in self.boundaries),
            f"schedule.boundaries must increase from at least 1, not {list(self.boundaries)}",
        )
        _check(self.patience >= 1, f"schedule.patience must be at least 1, not {self.patience}")
        # below 0 a worse error would count as better, and the plateau would never be seen
        _check(self.threshold >= 0, f"schedule.threshold must be at least 0, not {self.threshold}")
        _check(
            self.most_drops is None or self.most_drops >= 0,
            f"schedule.most_drops must be at least 0, not {self.most_drops}",
        )
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
    """Training crops that grow to ``augment.crop`` pixels (Howard, 2018; Tan and Le, 2021); not of the paper."""

    first: int = 0
    """Side of the first crops, in pixels; 0: all crops have the full size (the paper)."""
    phases: int = 4
    """Number of sizes, the full one included."""
    until: float = 0.75
    """Part of the run's iterations that the smaller sizes share equally; the rest has the full size."""
    multiple: int = 32
    """Sizes are rounded to multiples of this, in pixels (the network's total stride on ImageNet: 32)."""

    def __post_init__(self) -> None:
        _check(self.first >= 0, f"growth.first must be at least 0, not {self.first}")
        _check(self.phases >= 2, f"growth.phases must be at least 2, not {self.phases}")
        _check(0 < self.until < 1, f"growth.until must lie between 0 and 1, not {self.until}")
        _check(self.multiple >= 1, f"growth.multiple must be at least 1, not {self.multiple}")


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """A detector on the network: Faster R-CNN, or Mask R-CNN (the paper, appendices A and B).

    Its numbers are the defaults of Faster R-CNN's release, which the appendix keeps.
    """

    form: Literal["c4", "fpn"] = "c4"
    """c4: regions are pooled before the last stage, which runs on each (the paper, appendix A). fpn: from a pyramid of
    all stages (Lin et al., 2016)."""
    masks: bool = False
    """Whether each box gets a mask, too (He et al., 2017)."""
    norm: Literal["frozen", "batch"] = "frozen"
    """frozen: batch norm is the linear map of the averages that the network brings (the paper, appendix A). batch: it
    is trained, for a network that brings none."""
    context: bool = False
    """Of c4: whether the whole image is pooled as one more region, whose features stand beside each region's (the
    paper, appendix B: global context)."""
    longest: int = 1000
    """Longer side that an image is resized to at most, in pixels."""
    anchor_sizes: tuple[int, ...] = (128, 256, 512)
    """Sides of the anchors, in pixels of the resized image; of fpn one for each level."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors."""
    pooled: int = 14
    """Of c4: bins on each side of a pooled region."""
    mask_pooled: int = 14
    """Of c4: the same of a region whose mask is drawn, which has as many (He et al., 2017: 14)."""
    sampled_anchors: int = 256
    """Anchors of an image that the proposals' loss is of, half of them on objects if there are so many."""
    sampled_regions: int = 128
    """Regions of an image that the detector's loss is of, a quarter of them objects if there are so many."""
    proposals: int = 300
    """Regions of an image in testing (the paper, appendix A: 300)."""
    least_side: float = 16.0
    """Least side of a proposal, in pixels of the resized image; of fpn nothing is left out."""
    least_score: float = 0.05
    """Score below which nothing is found."""
    detections: int = 100
    """Most objects of an image (COCO: 100)."""

    def __post_init__(self) -> None:
        for name in (
            "longest",
            "pooled",
            "mask_pooled",
            "sampled_anchors",
            "sampled_regions",
            "proposals",
            "detections",
        ):
            _check(getattr(self, name) >= 1, f"detection.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("anchor_sizes", "anchor_ratios"):
            values = getattr(self, name)
            _check(
                len(values) > 0 and min(values) > 0, f"detection.{name} must be positive numbers, not {list(values)}"
            )
        _check(self.least_side > 0, f"detection.least_side must be positive, not {self.least_side}")
        _check(0 <= self.least_score < 1, f"detection.least_score must lie in [0, 1), not {self.least_score}")
        _check(
            self.form == "c4" or not self.context,
            "detection.context is for the form c4: the regions of a pyramid have no stage of their own",
        )


@dataclass(frozen=True, kw_only=True)
class LocalisationConfig:
    """A box for each class on the classifier's last map (the paper, appendix C: proposals in per-class form)."""

    norm: Literal["frozen", "batch"] = "frozen"
    """frozen: batch norm is the linear map of the averages that the network brings (the paper, appendix A). batch: it
    is trained, for a network that brings none."""
    anchor_sizes: tuple[int, ...] = (64, 128, 256)
    """Sides of the anchors, in pixels of the crop; the paper gives none."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors (Ren et al., 2015)."""
    sampled_anchors: int = 8
    """Anchors of an image that the loss is of, half of them on objects (the paper: 8)."""

    def __post_init__(self) -> None:
        _check(
            self.sampled_anchors >= 2, f"localisation.sampled_anchors must be at least 2, not {self.sampled_anchors}"
        )
        for name in ("anchor_sizes", "anchor_ratios"):
            values = getattr(self, name)
            _check(
                len(values) > 0 and min(values) > 0,
                f"localisation.{name} must be positive numbers, not {list(values)}",
            )


@dataclass(frozen=True, kw_only=True)
class RegionsConfig:
    """An R-CNN on a localiser's boxes: each is warped, and gets a new score and box (the paper, appendix C)."""

    norm: Literal["frozen", "batch"] = "frozen"
    """frozen: batch norm is the linear map of the averages that the network brings (the paper, appendix A). batch: it
    is trained, for a network that brings none."""
    localiser: str | None = None
    """SHA-256 of the weights of the localiser whose boxes are trained on, as `train --proposals` sets it."""
    proposals: int = 200
    """Best boxes of each class of an image that are regions, in training and in testing (the paper: 200)."""
    validated: int = 10
    """Best boxes of an image that are looked at in mid-training; 200 would take as long as many epochs."""

    def __post_init__(self) -> None:
        _check(
            self.localiser is None or re.fullmatch(r"[0-9a-f]{64}", self.localiser) is not None,
            f"regions.localiser must be a SHA-256, 64 digits, not {self.localiser!r}; --proposals takes a run",
        )
        _check(self.proposals >= 1, f"regions.proposals must be at least 1, not {self.proposals}")
        _check(
            1 <= self.validated <= self.proposals,
            f"regions.validated must lie between 1 and regions.proposals ({self.proposals}), not {self.validated}",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A complete recipe. Everything is counted in iterations (optimiser steps) and images."""

    recipe: str
    """The recipe's name, FAMILY/NETWORK."""
    model: ModelConfig
    """The network."""
    augment: AugmentConfig
    """How a training crop is drawn from its image."""
    views: ViewConfig
    """How the network is tested."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Stochastic gradient descent."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rate changes."""
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    """Training crops that grow."""
    detection: DetectionConfig | None = field(default=None, metadata=OMIT_NONE)
    """The detector that is trained on the network. Unset: the network is a classifier."""
    localisation: LocalisationConfig | None = field(default=None, metadata=OMIT_NONE)
    """The boxes of classes that are trained on the network. Unset: it has none."""
    regions: RegionsConfig | None = field(default=None, metadata=OMIT_NONE)
    """The R-CNN that is trained on a localiser's boxes. Unset: none is."""
    precision: Precision = "float32"
    """float32: what the paper used, on a GPU too. tf32: float32, but a GPU rounds what it multiplies to TF32's 10 bits;
    elsewhere float32. bf16: convolutions and products in bfloat16 by autocast; weights, batch norm, loss and updates
    stay float32. auto: bf16 if the hardware has it, else float32. float64: for comparisons."""
    compile: bool = False
    """Whether torch.compile runs the network with CUDA graphs on a GPU; ignored on a CPU (docs/LOG.md)."""
    batch: int = 256
    """Images of one optimiser step, whose gradients are averaged (the paper: 256; CIFAR-10: 128)."""
    micro_batch: int = 32
    """Images that batch norm sees at a time: the share of one of the paper's GPUs (8 × 32; CIFAR-10: 2 × 64)."""
    steps: int
    """Iterations of the whole run (the paper: up to 600,000; CIFAR-10: 64,000)."""
    eval_every: int = 5000
    """Iterations between two evaluations on the validation split."""
    checkpoint_every: int = 1000
    """Iterations between two checkpoints."""
    log_every: int = 50
    """Iterations between two lines of loss, error and speed."""
    bn_images: int = 32_000
    """Training images over which batch norm's statistics are averaged at the end, as in the authors' released networks;
    0 keeps the moving averages."""
    seed: int = 0
    """Decides initial weights, sample order and augmentation."""
    train_share: float | None = field(default=None, metadata=OMIT_NONE)
    """Part of each class's training images that the network is trained on, evenly spaced among them; mean and colours
    stay those of all. Unset: all (the paper)."""
    order: Literal["full", "block"] = "full"
    """How samples are shuffled: full over the whole epoch, block within blocks of shards, for data from a bucket."""
    block_shards: int = 16
    """Of block: shards in a block."""

    def __post_init__(self) -> None:
        # it is in names of folders and of registered models
        _check(re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)*", self.recipe) is not None, f"recipe is no name: {self.recipe!r}")
        for name in ("batch", "micro_batch", "steps", "eval_every", "checkpoint_every", "log_every", "block_shards"):
            value = getattr(self, name)
            _check(value >= 1, f"{name} must be at least 1, not {value}")
        _check(self.bn_images >= 0, f"bn_images must be at least 0, not {self.bn_images}")
        _check(
            self.train_share is None or 0 < self.train_share <= 1,
            f"train_share must lie in (0, 1], not {self.train_share}",
        )
        _check(0 <= self.seed < 2**63, f"seed must be a non-negative 64-bit integer, not {self.seed}")
        _check(
            self.batch % self.micro_batch == 0,
            f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch})",
        )
        frozen, stages = self.optim.frozen_stages, 3 if self.model.name.startswith("cifar-") else 4
        _check(
            frozen is None or 0 <= frozen <= stages,
            f"optim.frozen_stages must lie between 0 and {stages} for {self.model.name}, not {frozen}",
        )
        # an average has no statistics of its own to fall back on
        _check(self.optim.ema == 0 or self.bn_images > 0, "bn_images must be at least 1 with optim.ema, not 0")
        self._check_detection()
        self._check_localisation()
        self._check_end()
        self._check_growth()

    def _check_detection(self) -> None:
        """Raise ConfigError for a field that detection, or classification, would not follow."""
        detection = self.detection
        _check(
            (self.augment.kind == "whole-image") == (detection is not None),
            f"augment.kind is {self.augment.kind}: whole-image goes with detection, and detection with nothing else",
        )
        if detection is None:
            return
        for name, value in {
            "augment.color": self.augment.color,
            "growth.first": self.growth.first,
            "optim.label_smoothing": self.optim.label_smoothing,
        }.items():
            _check(value == 0, f"{name} is for classification: with detection it must be 0, not {value}")
        _check(
            self.optim.layer_decay is None, "optim.layer_decay is for classification: a detector's layers have one rate"
        )
        _check(
            detection.norm == "frozen" or (self.optim.frozen_stages is None and not self.optim.norm_eval),
            "optim.frozen_stages and optim.norm_eval keep batch norm as it is: set detection.norm to frozen",
        )

    def _check_localisation(self) -> None:
        """Raise ConfigError for a field that localisation, or the R-CNN on top of it, would not follow."""
        optim, head = self.optim, self.localisation or self.regions
        _check(
            (self.augment.kind == "region") == (self.regions is not None),
            f"augment.kind is {self.augment.kind}: region goes with regions, and regions with nothing else",
        )
        if head is None:
            return
        name = "regions" if self.regions else "localisation"
        tasks = [each for each in ("localisation", "regions", "detection") if getattr(self, each) is not None]
        _check(len(tasks) == 1, f"{' and '.join(tasks)} are two tasks: set one of them")
        _check(self.growth.first == 0, f"growth.first must be 0 with {name}, not {self.growth.first}")
        _check(
            optim.label_smoothing == 0,
            f"optim.label_smoothing must be 0 with {name}, not {optim.label_smoothing}",
        )
        _check(
            optim.layer_decay is None and not optim.norm_eval,
            f"optim.layer_decay and optim.norm_eval are for classification; {name}.norm says what batch norm does",
        )
        _check(
            head.norm == "frozen" or optim.frozen_stages is None,
            f"optim.frozen_stages keeps batch norm as it is: set {name}.norm to frozen",
        )
        _check(
            self.regions is None or self.train_share is None,
            "train_share can't be set with regions: the boxes are of all training images",
        )

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
    def task(self) -> TaskName:
        """What the network is trained for."""
        if self.detection is not None:
            return "detection"
        return "classification" if self.head is None else "localisation"

    @property
    def head(self) -> DetectionConfig | LocalisationConfig | RegionsConfig | None:
        """What is trained on the network instead of its classifier: boxes of some kind; None for a classifier."""
        return self.detection or self.localisation or self.regions

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
