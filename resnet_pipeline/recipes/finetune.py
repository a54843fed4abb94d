"""A recipe of minutes for a network that has learned something already, on images of one's own; not the paper's."""

from __future__ import annotations

from resnet_pipeline.config import AugmentConfig, ModelConfig, OptimConfig, RunConfig, ScheduleConfig, ViewConfig

NETWORKS = (
    *(f"plain{depth}" for depth in (18, 34)),
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"cifar-plain{depth}" for depth in (20, 32, 44, 56)),
    *(f"cifar-resnet{depth}" for depth in (8, 14, 20, 32, 44, 56, 110)),
)


def short(network: str) -> RunConfig:
    """Return the recipe for one of NETWORKS, which `resnet-pipeline finetune` fits to the images that it is given.

    It sets the number of steps, the size of the crops, and the shortcuts of the reference. RandomResizedCrop (Szegedy
    et al., 2014) leaves at least a quarter of the area; the rate falls as half a cosine. Where the processor or GPU has
    bf16, which halves the time, it is used.

    Command: ``resnet-pipeline finetune torchvision:resnet18 --source FOLDER``.

    >>> short("resnet18").augment.crop
    224
    """
    crop = 32 if network.startswith("cifar-") else 224
    return RunConfig(
        recipe=f"finetune/{network}",
        model=ModelConfig(name=network, mean="channel"),
        augment=AugmentConfig(kind="random-resized-crop", crop=crop, area=(0.25, 1.0)),
        views=ViewConfig(crop=crop, resize=crop * 8 // 7, scales=(crop, crop * 8 // 7)),
        optim=OptimConfig(lr=0.02, momentum=0.9, weight_decay=1e-4, decay_norm=False),
        schedule=ScheduleConfig(kind="cosine", warmup=10),
        precision="auto",
        batch=64,
        micro_batch=32,
        steps=200,
        eval_every=50,
        checkpoint_every=50,
        log_every=10,
        bn_images=1_024,
    )
