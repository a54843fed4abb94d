"""The paper's CIFAR-10 recipe (section 4.2) for its plain and residual networks, and highway networks beside them.

`fast` is a recipe of today for the same residual networks.
"""

from __future__ import annotations

from resnet_pipeline.config import AugmentConfig, ModelConfig, OptimConfig, RunConfig, ScheduleConfig, ViewConfig

NETWORKS = (
    *(f"resnet{depth}" for depth in (20, 32, 44, 56, 110, 1202)),  # Table 6
    *(f"plain{depth}" for depth in (20, 32, 44, 56)),  # figure 6, left
    *(f"highway{depth}" for depth in (20, 32, 44, 56, 110)),  # beside each residual network, gates for identities
)
FAST_NETWORKS = tuple(f"resnet{depth}" for depth in (20, 32, 44, 56, 110))
IMAGES = 50_000


def faithful(network: str) -> RunConfig:
    """Return the paper's recipe for one of NETWORKS: 64k iterations of 128 images, about 164 epochs.

    Command: ``resnet-pipeline train cifar10/resnet20 --dataset cifar10``. Some 5 hours on two CPU cores for 20 layers.
    The paper's errors: ``evaluation.paper``, or ``resnet-pipeline recipes``.

    >>> faithful("resnet20").steps
    64000
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
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4, decay_norm=False),
        schedule=ScheduleConfig(kind="step", boundaries=(32_000, 48_000), factor=0.1, warmup_lr=warmup_lr),
        batch=128,
        micro_batch=64,  # "two GPUs"
        steps=64_000,
        eval_every=1_000,
        checkpoint_every=1_000,
        log_every=50,
        bn_images=32_000,
    )


def fast(network: str) -> RunConfig:
    """Return a recipe for a short budget for one of FAST_NETWORKS: 30 epochs, 512 images a step, not the paper's.

    Command: ``resnet-pipeline train cifar10-fast/resnet20 --dataset cifar10``. A fifth of the paper's epochs. It has
    linear scaling of the rate with three epochs of warm-up, no decay of batch norm (Goyal et al., 2017), a cosine,
    averaged weights, bf16 if the hardware has it, and torch.compile on a GPU.

    >>> fast("resnet20").batch
    512
    """
    batch = 512
    return RunConfig(
        recipe=f"cifar10-fast/{network}",
        model=ModelConfig(name=f"cifar-{network}", mean="image"),
        augment=AugmentConfig(kind="pad-crop", crop=32, pad=4, flip=True),
        views=ViewConfig(crop=32, resize=32, scales=(32,)),
        optim=OptimConfig(
            lr=0.1 * batch / 128, momentum=0.9, weight_decay=1e-4, decay_norm=False, label_smoothing=0.05, ema=0.99
        ),
        schedule=ScheduleConfig(kind="cosine", warmup=3 * IMAGES // batch),
        precision="auto",
        compile=True,
        batch=batch,
        micro_batch=128,
        steps=30 * IMAGES // batch,
        eval_every=5 * IMAGES // batch,
        checkpoint_every=500,
        log_every=20,
        bn_images=32 * batch,
    )
