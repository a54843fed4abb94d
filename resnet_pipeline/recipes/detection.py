"""Detectors on the paper's networks: its appendix A on Pascal VOC and COCO, torchvision's of today, and a small one.

Each begins with a classifier of one's own: ``--initial-weights MODEL``. The form C4 is the paper's, FPN today's.
"""

from __future__ import annotations

from resnet_pipeline.config import (
    AugmentConfig,
    DetectionConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    ViewConfig,
)

VOC_NETWORKS = ("fasterrcnn-resnet50-c4", "fasterrcnn-resnet101-c4", "fasterrcnn-resnet50-fpn")
COCO_NETWORKS = (*VOC_NETWORKS, "maskrcnn-resnet50-fpn")
SCENES_NETWORKS = ("fasterrcnn-resnet8-c4", "maskrcnn-resnet8-c4")

VOC_IMAGES, COCO_IMAGES = 16_551, 117_266
"""VOC 2007's and 2012's trainval; COCO 2017's training images with objects."""


def voc(network: str) -> RunConfig:
    """Return the recipe for Pascal VOC and one of VOC_NETWORKS: C4 as the paper, FPN as torchvision trains today.

    The paper (appendix A) keeps Faster R-CNN's settings: 2 images a step, 60,000 iterations at 0.001 and 20,000 at
    0.0001, weight decay 0.0005, shorter side 600. Proposals and detector are trained together, not in turns.

    Command: ``resnet-pipeline train voc/fasterrcnn-resnet101-c4 --dataset voc --initial-weights imagenet-resnet101``.
    Not yet run on Pascal VOC; the paper: 76.4 % mAP on VOC 2007 (Table 7).

    >>> voc("fasterrcnn-resnet101-c4").views.resize
    600
    """
    if network.endswith("-fpn"):
        return _today("voc", network, VOC_IMAGES)
    return _faithful("voc", network, batch=2, micro_batch=1, boundary=60_000, steps=80_000)


def coco(network: str) -> RunConfig:
    """Return the recipe for COCO and one of COCO_NETWORKS: C4 as the paper, FPN as torchvision trains today.

    The paper (appendix A): 16 images a step on 8 GPUs, 240,000 iterations at 0.001 and 80,000 at 0.0001, shorter side
    600. Proposals and detector are trained together, not in turns.

    Command: ``resnet-pipeline train coco/fasterrcnn-resnet101-c4 --dataset coco --initial-weights imagenet-resnet101
    --workers 8``. Not yet run on COCO; the paper: 27.2 % AP, 48.4 % AP50 (Table 8); torchvision's Mask R-CNN R50-FPN:
    37.9 % for boxes, 34.6 % for masks.

    >>> coco("maskrcnn-resnet50-fpn").detection.masks
    True
    """
    if network.endswith("-fpn"):
        return _today("coco", network, COCO_IMAGES)
    return _faithful("coco", network, batch=16, micro_batch=2, boundary=240_000, steps=320_000)


def scenes(network: str) -> RunConfig:
    """Return the recipe for the built-in digits on backgrounds and one of SCENES_NETWORKS; `make demo-detection`.

    It begins with ``digits/resnet8``, whose digits are about as large; the stages that are shared stay as they are, so
    that a step takes half the time. Nothing is mirrored: a mirrored digit is none.

    Command: ``resnet-pipeline train scenes/maskrcnn-resnet8-c4 --dataset scenes --initial-weights digits-resnet8``.
    Not of the paper.

    >>> scenes("maskrcnn-resnet8-c4").model.name
    'cifar-resnet8'
    """
    kind, backbone, _ = network.split("-")
    return RunConfig(
        recipe=f"scenes/{network}",
        model=ModelConfig(name=f"cifar-{backbone}", mean="channel"),
        augment=AugmentConfig(kind="whole-image", crop=72, shorter_side=(68, 76), flip=False),
        views=ViewConfig(crop=72, resize=72, scales=(72,), flip=False),
        optim=OptimConfig(lr=0.2, momentum=0.9, weight_decay=1e-4, decay_norm=False, frozen_stages=2),
        schedule=ScheduleConfig(kind="cosine", warmup=20),
        detection=DetectionConfig(
            masks=kind == "maskrcnn",
            longest=110,
            anchor_sizes=(18,),
            anchor_ratios=(1.2, 1.8),
            pooled=8,  # as many as a training crop of digits has there
            mask_pooled=12,
            sampled_anchors=64,
            sampled_regions=32,
            proposals=40,
            least_side=4.0,
            detections=20,
        ),
        batch=8,
        micro_batch=4,
        steps=400,
        eval_every=400,
        checkpoint_every=100,
        log_every=10,
        bn_images=0,
    )


def _faithful(family: str, network: str, *, batch: int, micro_batch: int, boundary: int, steps: int) -> RunConfig:
    """Return the paper's recipe of appendix A; the stem and conv2_x stay as they are, as in Fast R-CNN's networks."""
    _, backbone, _ = network.split("-")
    return RunConfig(
        recipe=f"{family}/{network}",
        model=ModelConfig(name=backbone, stride="v1", mean="channel"),
        augment=AugmentConfig(kind="whole-image", crop=600, shorter_side=(600, 600)),
        views=ViewConfig(crop=600, resize=600, scales=(600,)),
        optim=OptimConfig(lr=0.001, momentum=0.9, weight_decay=5e-4, decay_norm=False, frozen_stages=1),
        schedule=ScheduleConfig(kind="step", boundaries=(boundary,), factor=0.1),
        detection=DetectionConfig(),
        batch=batch,
        micro_batch=micro_batch,
        steps=steps,
        eval_every=10_000,
        checkpoint_every=1_000,
        log_every=20,
        bn_images=0,
    )


def _today(family: str, network: str, images: int) -> RunConfig:
    """Return torchvision's reference schedule: 26 epochs of 16 images a step, 0.02, a tenth from epochs 16 and 22 on.

    Shorter side 800, longer 1333, stride v1.5, all but the last three stages fixed, one size of anchors for each level.
    """
    kind, backbone, _ = network.split("-")
    epoch = images / 16
    return RunConfig(
        recipe=f"{family}/{network}",
        model=ModelConfig(name=backbone, stride="v1.5", mean="channel"),
        augment=AugmentConfig(kind="whole-image", crop=800, shorter_side=(800, 800)),
        views=ViewConfig(crop=800, resize=800, scales=(800,)),
        optim=OptimConfig(lr=0.02, momentum=0.9, weight_decay=1e-4, frozen_stages=1),
        schedule=ScheduleConfig(
            kind="step", boundaries=(round(16 * epoch), round(22 * epoch)), factor=0.1, warmup=min(1_000, round(epoch))
        ),
        detection=DetectionConfig(
            form="fpn",
            masks=kind == "maskrcnn",
            longest=1333,
            anchor_sizes=(32, 64, 128, 256, 512),
            sampled_regions=512,
            proposals=1_000,
        ),
        batch=16,
        micro_batch=2,
        steps=round(26 * epoch),
        eval_every=round(2 * epoch),
        checkpoint_every=1_000,
        log_every=20,
        bn_images=0,
    )
