"""A recipe of minutes on a laptop's processor, for the built-in handwritten digits; `resnet-pipeline demo` runs it."""

from __future__ import annotations

from resnet_pipeline.config import AugmentConfig, ModelConfig, OptimConfig, RunConfig, ScheduleConfig, ViewConfig

NETWORKS = ("resnet8", "resnet14", "resnet20")


def small(network: str) -> RunConfig:
    """Return the recipe for one of NETWORKS: ImageNet's augmentation and protocols in miniature.

    Nothing is mirrored, in training or in testing: a mirrored digit is no digit.

    Command: ``resnet-pipeline train digits/resnet20 --dataset digits --workers 2``. Not of the paper.

    >>> small("resnet8").model.name
    'cifar-resnet8'
    """
    return RunConfig(
        recipe=f"digits/{network}",
        model=ModelConfig(name=f"cifar-{network}", mean="image"),
        augment=AugmentConfig(kind="scale-crop", crop=16, shorter_side=(17, 21), flip=False, color=0.0),
        views=ViewConfig(crop=16, resize=18, scales=(16, 18, 20), flip=False),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-3),
        schedule=ScheduleConfig(kind="cosine", warmup=20),
        batch=64,
        micro_batch=32,
        steps=240,
        eval_every=80,
        checkpoint_every=80,
        log_every=10,
        bn_images=1_408,
    )
