"""The paper's ImageNet recipe (section 3.4) for its plain and residual networks."""

from __future__ import annotations

from typing import Literal

from resnet_pipeline.config import AugmentConfig, ModelConfig, OptimConfig, RunConfig, ScheduleConfig, ViewConfig

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


def faithful(network: str) -> RunConfig:
    """Return the paper's recipe for one of NETWORKS: 60e4 iterations of 256 images, about 120 epochs.

    Command: ``resnet-pipeline train imagenet/resnet152 --dataset ilsvrc2012 --workers 8``. Not yet timed on GPUs here.
    The paper's errors: ``evaluation.published``, or ``resnet-pipeline recipes``.
    """
    name, shortcut = _NETWORKS[network]
    return RunConfig(
        recipe=f"imagenet/{network}",
        model=ModelConfig(name=name, shortcut=shortcut, stride="v1", mean="image"),
        augment=AugmentConfig(kind="scale-crop", crop=224, shorter_side=(256, 480), flip=True, color=0.1),
        views=ViewConfig(crop=224, resize=256, scales=(224, 256, 384, 480, 640)),
        optim=OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="plateau", factor=0.1, patience=5, threshold=0.1),
        batch=256,
        micro_batch=32,  # the authors' 8 GPUs
        steps=600_000,
        eval_every=5_000,  # about once per epoch
        checkpoint_every=1_000,
        log_every=50,
        bn_images=32_000,
    )
