"""The paper's ImageNet recipe (section 3.4) for its plain and residual networks; beside it, those of today."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from resnet_pipeline.config import (
    AugmentConfig,
    GrowthConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    ViewConfig,
)

_Shortcut = Literal["A", "B", "C"] | None

# Recipe -> (network, shortcut option). Table 2's ResNet-18 and -34 have option A; Table 3 compares A, B and C on 34
# layers; 50 layers and more have option B.
_NETWORKS: dict[str, tuple[str, _Shortcut]] = {
    "plain18": ("plain18", None),
    "plain34": ("plain34", None),
    "resnet18": ("resnet18", "A"),
    "resnet34": ("resnet34", "A"),
    "resnet34-b": ("resnet34", "B"),
    "resnet34-c": ("resnet34", "C"),
    "resnet50": ("resnet50", "B"),
    "resnet101": ("resnet101", "B"),
    "resnet152": ("resnet152", "B"),
}
NETWORKS = tuple(_NETWORKS)
FAST_NETWORKS = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))
LARGE_NETWORKS = ("resnet50", "resnet101", "resnet152")
LARGE_BATCHES = {512: "512", 2048: "2k", 8192: "8k"}
"""Images of a step, and how the families `imagenet-512`, `-2k` and `-8k` write it: 32 for each of 16, 64, 256 GPUs."""
LARGEST_BATCH = 32_768
"""Images of a step in the family `imagenet-32k`: 64 for each of 512 GPUs."""
IMAGES = 1_281_167


def faithful(network: str) -> RunConfig:
    """Return the paper's recipe for one of NETWORKS: 60e4 iterations of 256 images, about 120 epochs.

    Command: ``resnet-pipeline train imagenet/resnet152 --dataset ilsvrc2012 --workers 8``. Not yet timed on GPUs here.
    The paper's errors: ``evaluation.paper``, or ``resnet-pipeline recipes``.

    >>> faithful("resnet152").steps
    600000
    """
    name, shortcut = _NETWORKS[network]
    return RunConfig(
        recipe=f"imagenet/{network}",
        model=ModelConfig(name=name, shortcut=shortcut, stride="v1", mean="image"),
        augment=AugmentConfig(kind="scale-crop", crop=224, shorter_side=(256, 480), flip=True, color=0.1),
        views=ViewConfig(crop=224, resize=256, scales=(224, 256, 384, 480, 640)),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4, decay_norm=False),
        # not below 1e-4: the paper names no floor, and its curves show two drops
        schedule=ScheduleConfig(kind="plateau", factor=0.1, patience=5, threshold=0.1, most_drops=3),
        batch=256,
        micro_batch=32,  # the authors' 8 GPUs
        steps=600_000,
        eval_every=5_000,  # about once per epoch
        checkpoint_every=1_000,
        log_every=50,
        bn_images=32_000,
    )


def fast(network: str) -> RunConfig:
    """Return a recipe for today's GPUs for one of FAST_NETWORKS: 90 epochs, 1024 images a step, not the paper's.

    Command: ``resnet-pipeline train imagenet-fast/resnet50 --dataset ilsvrc2012 --workers 8``. Not yet run on ImageNet.
    It has linear scaling of the rate with five epochs of warm-up, no decay of batch norm (Goyal et al., 2017), a cosine
    (Loshchilov and Hutter, 2016), label smoothing and RandomResizedCrop (Szegedy et al., 2015, 2014), crops that grow
    from 128 pixels, averaged weights, stride v1.5, bf16, and torch.compile.

    >>> fast("resnet50").batch
    1024
    """
    return _today("imagenet-fast", network, epochs=90, warmup=5, lr=0.1, crop=224, first=128)


def short(network: str) -> RunConfig:
    """Return a recipe for a short budget for one of FAST_NETWORKS: 18 epochs of crops from 96 to 192 pixels.

    Command: ``resnet-pipeline train imagenet-short/resnet50 --dataset ilsvrc2012 --workers 8``. Not yet run there.
    It is `fast` with twice the rate. It is tested on larger crops than it is trained on, which is better (Touvron et
    al., 2019).

    >>> short("resnet50").growth.first
    96
    """
    return _today("imagenet-short", network, epochs=18, warmup=2, lr=0.2, crop=192, first=96)


def large(network: str, batch: int) -> RunConfig:
    """Return Goyal et al.'s recipe (2017) for a large batch, one of LARGE_BATCHES, and one of LARGE_NETWORKS.

    Command: ``resnet-pipeline train imagenet-8k/resnet50 --dataset ilsvrc2012 --workers 256``. Not yet run on ImageNet.
    90 epochs; the rate is 0.1 for each 256 images of a batch, with five epochs of warm-up, and a tenth from epochs 30,
    60 and 80 on; 32 images for each GPU, over which batch norm takes its statistics; no decay of batch norm, each
    block's last scale 0 at first, stride v1.5, RandomResizedCrop. They report 23.60 % top-1 error for 256 images, and
    23.74 % for 8,192 (their Table 1). Unlike theirs the momentum is not Nesterov's, and the warm-up begins at 0.

    >>> large("resnet50", 8192).optim.lr
    3.2
    """
    name, _ = _NETWORKS[network]
    epoch = IMAGES / batch
    return RunConfig(
        recipe=f"imagenet-{LARGE_BATCHES[batch]}/{network}",
        model=ModelConfig(name=name, shortcut="B", stride="v1.5", mean="channel", last_gamma=0.0),
        augment=AugmentConfig(kind="random-resized-crop", crop=224, area=(0.08, 1.0), flip=True),
        views=ViewConfig(crop=224, resize=256, scales=(224, 256, 384, 480, 640)),
        optim=OptimConfig(lr=0.1 * batch / 256, momentum=0.9, weight_decay=1e-4, decay_norm=False),
        schedule=ScheduleConfig(
            kind="step",
            boundaries=(round(30 * epoch), round(60 * epoch), round(80 * epoch)),
            factor=0.1,
            warmup=round(5 * epoch),
        ),
        precision="auto",
        compile=True,
        batch=batch,
        micro_batch=32,
        steps=round(90 * epoch),
        eval_every=round(5 * epoch),
        checkpoint_every=min(1_000, round(2 * epoch)),
        log_every=10,
        bn_images=32_768,
    )


def largest(network: str) -> RunConfig:
    """Return the recipe for 32,768 images a step, 64 for each of 512 GPUs, and one of LARGE_NETWORKS: with LARS.

    Command: ``resnet-pipeline train imagenet-32k/resnet50 --dataset ilsvrc2012 --workers 512``. Not yet run on
    ImageNet. It is `large` but for the rate of each layer (You et al., 2017: trust coefficient 0.001) and the schedule
    that TensorFlow's own ResNet takes with LARS for this batch: 14 epochs of warm-up to a rate of 32, then the square
    of what is left of 90 epochs. TensorFlow reports 23.7 % top-1 error for ResNet-50 (its commit 1608a0c). Its momentum
    is multiplied by the layers' rates of now, ours, as You et al.'s, by those that the gradients had.

    >>> largest("resnet50").steps
    3519
    """
    recipe = large(network, 8192)
    epoch = IMAGES / LARGEST_BATCH
    return replace(
        recipe,
        recipe=f"imagenet-32k/{network}",
        optim=replace(recipe.optim, lr=32.0, trust=0.001),
        schedule=ScheduleConfig(kind="square", warmup=round(14 * epoch)),
        batch=LARGEST_BATCH,
        micro_batch=64,
        steps=round(90 * epoch),
        eval_every=round(5 * epoch),
        checkpoint_every=round(2 * epoch),
    )


def _today(family: str, network: str, *, epochs: int, warmup: int, lr: float, crop: int, first: int) -> RunConfig:
    """Return a recipe of today; ``lr`` is that of 256 images."""
    batch = 1024
    name, _ = _NETWORKS[network]
    return RunConfig(
        recipe=f"{family}/{network}",
        model=ModelConfig(name=name, shortcut="B", stride="v1.5", mean="channel"),
        augment=AugmentConfig(kind="random-resized-crop", crop=crop, area=(0.25, 1.0), flip=True),
        views=ViewConfig(crop=224, resize=256, scales=(224, 256, 384, 480, 640)),
        optim=OptimConfig(
            lr=lr * batch / 256,
            momentum=0.9,
            weight_decay=5e-5,
            decay_norm=False,
            label_smoothing=0.1,
            ema=0.999,
        ),
        schedule=ScheduleConfig(kind="cosine", warmup=warmup * IMAGES // batch),
        growth=GrowthConfig(first=first, phases=4, until=0.75),
        precision="auto",
        compile=True,
        batch=batch,
        micro_batch=128,  # eight GPUs
        steps=epochs * IMAGES // batch,
        eval_every=5 * IMAGES // batch,
        checkpoint_every=1_000,
        log_every=50,
        bn_images=32 * batch,
    )
