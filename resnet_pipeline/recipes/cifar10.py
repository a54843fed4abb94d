"""The paper's CIFAR-10 recipe (section 4.2) for its plain and residual networks, and highway networks beside them."""

from __future__ import annotations

from resnet_pipeline.config import AugmentConfig, ModelConfig, OptimConfig, RunConfig, ScheduleConfig, ViewConfig

NETWORKS = (
    *(f"resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)),  # Table 6
    *(f"plain{depth}" for depth in (20, 32, 44, 56)),  # figure 6, left
    *(f"highway{depth}" for depth in (20, 32, 44, 56, 110)),  # beside each residual network, gates for identities
)


def faithful(network: str) -> RunConfig:
    """Return the paper's recipe for one of NETWORKS: 64k iterations of 128 images, about 164 epochs.

    Command: ``resnet-pipeline train cifar10/resnet20 --dataset cifar10``. Some 5 hours on two CPU cores for 20 layers.
    The paper's errors: ``evaluation.published``, or ``resnet-pipeline recipes``.
    """
    # Section 4.2: 110 layers start at 0.01 until the training error is below 80 %, about 400 iterations. The paper does
    # not say how 1202 layers started; they are deeper, so they start the same way.
    warmup_lr = 0.01 if network in ("resnet110", "resnet1202") else None
    return RunConfig(
        recipe=f"cifar10/{network}",
        # 1202 layers: 14 blocks of activations at once instead of 600 (benchmarks/memory.py: 2.0 GiB, not 6.5)
        model=ModelConfig(name=f"cifar-{network}", mean="image", checkpointing=14 if network == "resnet1202" else 0),
        augment=AugmentConfig(kind="pad-crop", crop=32, pad=4, flip=True),
        views=ViewConfig(crop=32, resize=32, scales=(32,)),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="step", boundaries=(32_000, 48_000), factor=0.1, warmup_lr=warmup_lr),
        batch=128,
        micro_batch=64,  # "two GPUs"
        steps=64_000,
        eval_every=1_000,
        checkpoint_every=1_000,
        log_every=50,
        bn_images=32_000,
    )
