"""ImageNet localisation: the paper's appendix C on networks that its classification has trained."""

from __future__ import annotations

from resnet_pipeline.config import (
    AugmentConfig,
    LocalisationConfig,
    ModelConfig,
    OptimConfig,
    RegionsConfig,
    RunConfig,
    ScheduleConfig,
    ViewConfig,
)

NETWORKS = ("resnet50", "resnet101", "rcnn-resnet50", "rcnn-resnet101")
IMAGES = 544_546
"""ILSVRC 2012's training images with boxes."""
_EPOCHS = 20


def faithful(network: str) -> RunConfig:
    """Return the recipe for one of NETWORKS: 256 crops of 224 pixels a step, 8 anchors each, batch norm frozen.

    Of ``rcnn-…`` the crops are regions, the 200 best boxes that a localiser gives the true class of an image.

    The paper gives neither rate nor length; ours are 0.01 for two thirds of 20 epochs of the annotated images, and a
    tenth for the rest.

    Command: ``resnet-pipeline train ilsvrc-loc/resnet101 --dataset ilsvrc2012 --initial-weights imagenet-resnet101
    --workers 8``, then ``resnet-pipeline localise RUN --dataset ilsvrc2012``; the R-CNN on top of it: ``resnet-pipeline
    train ilsvrc-loc/rcnn-resnet101 --proposals RUN …``, then ``localise RUN --rcnn RCNN …``. Not yet run on ImageNet;
    the paper: 13.3 % with the true classes and one crop, 11.7 % on whole images; with predicted classes 14.4 %, by the
    R-CNN 10.6 % (Table 13).

    >>> faithful("resnet101").localisation.sampled_anchors, faithful("rcnn-resnet101").regions.proposals
    (8, 200)
    """
    second, backbone = network.startswith("rcnn-"), network.removeprefix("rcnn-")
    if second:
        augment = AugmentConfig(kind="region", crop=224, color=0.1)
    else:
        augment = AugmentConfig(kind="scale-crop", crop=224, shorter_side=(256, 480), color=0.1)
    steps = round(_EPOCHS * IMAGES / 256)
    return RunConfig(
        recipe=f"ilsvrc-loc/{network}",
        model=ModelConfig(name=backbone),
        augment=augment,
        views=ViewConfig(crop=224, resize=256),
        optim=OptimConfig(lr=0.01, momentum=0.9, weight_decay=1e-4, decay_norm=False),
        schedule=ScheduleConfig(kind="step", boundaries=(round(steps * 2 / 3),)),
        localisation=None if second else LocalisationConfig(),
        regions=RegionsConfig() if second else None,
        batch=256,
        micro_batch=32,
        steps=steps,
        eval_every=5_000,
        checkpoint_every=1_000,
        log_every=50,
        bn_images=0,
    )
