"""The paper's improvements of a trained detector, each against a slow plain version."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from resnet_pipeline.config import ConfigError, DetectionConfig
from resnet_pipeline.detection.improvements import ImprovedDetector, Improvements, adjacent_scales
from resnet_pipeline.detection.metrics import overlaps
from resnet_pipeline.detection.networks import build_detector
from resnet_pipeline.detection.task import DetectionTask
from resnet_pipeline.errors import UserError
from resnet_pipeline.models import Normalize, build_model
from resnet_pipeline.training.context import LocalContext
from tests.unit.detection.conftest import small_config
from tests.unit.detection.test_networks import MEAN, settle

CLASSES = 3
SCALES = (40, 60, 90, 150)


def detector(images, seed: int = 0, classes: int = CLASSES, **options):
    torch.manual_seed(seed)
    config = DetectionConfig(**({"norm": "batch", "anchor_sizes": (8, 16, 24), "pooled": 8, "proposals": 12,
                                 "detections": 9, "least_score": 0.05} | options))  # fmt: skip
    made = build_detector(build_model("cifar-resnet8"), config, classes=classes, normalize=Normalize(MEAN))
    made.rcnn.rpn.min_size = 4.0
    # a fresh network's boxes and scores are much alike
    torch.nn.init.normal_(made.rcnn.roi_heads.box_predictor.bbox_pred.weight, std=0.5)
    torch.nn.init.normal_(made.rcnn.roi_heads.box_predictor.cls_score.weight, std=0.5)
    settle(made, images)
    return made


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(7)
    return [
        torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8),
        torch.randint(0, 256, (80, 60, 3), dtype=torch.uint8),
    ]


def resized(image, side):
    height, width = (round(length * side / 60) for length in image.shape[:2])
    moved = image.permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(moved, (height, width), mode="bilinear")[0].permute(1, 2, 0).to(torch.uint8)


def same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys() and len(one["boxes"]) > 1
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-3)


# the slow plain version: one region, one class, one box at a time


class Plain:
    """A member of an ensemble, whose regions are pooled one by one."""

    def __init__(self, member, image, others):
        self.heads, self.rcnn, self.base = member.rcnn.roi_heads, member.rcnn, image
        self.maps = []
        for each in others or [image]:
            pixels = member.normalize(each[None])
            height, width = each.shape[:2]
            room = torch.zeros(1, 3, math.ceil(height / 32) * 32, math.ceil(width / 32) * 32)
            room[:, :, :height, :width] = pixels
            self.maps.append((self.rcnn.backbone(room), (height, width)))
        found, _ = self.rcnn.transform([member.normalize(image[None])[0]])
        self.proposals = self.rcnn.rpn(found, self.rcnn.backbone(found.tensors))[0][0]

    def features(self, box, maps, shape):
        height, width = self.base.shape[:2]
        x, y = shape[1] / width, shape[0] / height
        region = torch.tensor([[box[0] * x, box[1] * y, box[2] * x, box[3] * y]], dtype=torch.float32)
        return self.heads.box_head(self.heads.box_roi_pool(maps, [region], [shape]))[0]

    def region(self, box):
        """Return a region's probabilities, and its deltas, of the maximum over two scales."""
        side = math.sqrt(max((box[2] - box[0]) * (box[3] - box[1]), 1.0))
        away = []
        for place, (_, shape) in enumerate(self.maps):
            scaled = side * math.sqrt(shape[0] * shape[1] / (self.base.shape[0] * self.base.shape[1]))
            away.append((abs(math.log(scaled / 224)), place))
        features = [self.features(box, *self.maps[place]) for _, place in sorted(away)[:2]]
        merged = [max(values) for values in zip(*[one.tolist() for one in features], strict=True)]
        logits, deltas = self.heads.box_predictor(torch.tensor([merged]))
        return logits.softmax(1)[0].double().numpy(), deltas[0].double().numpy().reshape(-1, 4)


def decoded(box, delta, shape):
    """Return the box that deltas make of another one, inside the image."""
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = box[0] + width / 2 + delta[0] / 10 * width, box[1] + height / 2 + delta[1] / 10 * height
    most = math.log(1000 / 16)
    width, height = width * math.exp(min(delta[2] / 5, most)), height * math.exp(min(delta[3] / 5, most))
    sides = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return [min(max(side, 0.0), float(shape[1 - i % 2])) for i, side in enumerate(sides)]


def plainly(members, image, others, *, refinement):
    """Return what the paper's test finds, without masks."""
    plain, shape = [Plain(member, image, others) for member in members], image.shape[:2]
    heads = plain[0].heads

    def tested(region):
        both = [one.region(region) for one in plain]
        scores, deltas = (sum(values) / len(plain) for values in zip(*both, strict=True))
        return scores, [decoded(region, delta, shape) for delta in deltas]

    regions = [region.tolist() for one in plain for region in one.proposals]
    outcomes = [tested(region) for region in regions]
    if refinement:
        outcomes += [tested(boxes[1 + int(np.argmax(scores[1:]))]) for scores, boxes in outcomes]
    kept = []
    for label in range(1, CLASSES + 1):
        own = [(scores[label], boxes[label]) for scores, boxes in outcomes if scores[label] > heads.score_thresh]
        own = [(score, box) for score, box in own if box[2] - box[0] >= 0.01 and box[3] - box[1] >= 0.01]
        chosen = []
        for score, box in sorted(own, reverse=True):
            if all(overlaps(np.array([box]), np.array([other]))[0, 0] <= 0.3 for _, other in chosen):
                chosen.append((score, box))
        for score, box in chosen:
            near = [(s, b) for s, b in own if overlaps(np.array([box]), np.array([b]))[0, 0] >= 0.5]
            total = sum(s for s, _ in near)
            mean = [sum(s * b[i] for s, b in near) / total for i in range(4)]
            kept.append((score, label, mean if refinement else box))
    kept = sorted(kept, reverse=True)[: heads.detections_per_img]
    return {
        "boxes": np.array([box for _, _, box in kept]),
        "scores": np.array([score for score, _, _ in kept]),
        "labels": np.array([label for _, label, _ in kept]),
    }


@pytest.mark.parametrize(
    "options", [{}, {"masks": True}, {"context": True}, {"form": "fpn", "anchor_sizes": (8, 16, 24, 32)}]
)
def test_with_all_switches_off_it_is_the_detector_itself(images, options):
    plain = detector(images, **options)
    with torch.inference_mode():
        same(ImprovedDetector([plain])([[image] for image in images]), plain([images[0]]) + plain([images[1]]))


@pytest.mark.parametrize(
    ("members", "improvements", "options"),
    [
        (1, Improvements(refinement=True), {}),
        (1, Improvements(scales=SCALES), {}),
        (1, Improvements(scales=(60,)), {}),
        (3, Improvements(), {}),
        (2, Improvements(refinement=True, scales=SCALES), {"context": True}),
    ],
    ids=["refinement", "scales", "one scale", "ensemble", "all"],
)
def test_each_improvement_is_the_slow_plain_version(images, members, improvements, options):
    ensemble = [detector(images, seed, **options) for seed in range(members)]
    with torch.inference_mode():
        for image in images:
            others = [resized(image, side) for side in improvements.scales]
            ours = ImprovedDetector(ensemble, improvements)([[image, *others]])
            same(ours, [plainly(ensemble, image, others, refinement=improvements.refinement)])


def test_improvements_change_what_is_found(images):
    plain, other = detector(images), detector(images, 1)
    pyramid = [images[0], *[resized(images[0], side) for side in SCALES]]
    with torch.inference_mode():
        found = [
            ImprovedDetector(members, improvements)([pyramid[: 1 + len(improvements.scales)]])[0]["boxes"]
            for members, improvements in [
                ([plain], Improvements()),
                ([plain], Improvements(refinement=True)),
                ([plain], Improvements(scales=SCALES)),
                ([plain, other], Improvements()),
            ]
        ]
    assert not any(torch.equal(one, two) for i, one in enumerate(found) for two in found[:i])


def test_masks_of_an_ensemble_are_averaged(images):
    members = [detector(images, seed, masks=True) for seed in (0, 1)]
    twice = ImprovedDetector([members[0], members[0]])([[images[0]]])[0]
    with torch.inference_mode():
        found = ImprovedDetector(members)([[images[0]]])[0]
    assert found["masks"].shape == (len(found["boxes"]), 1, 60, 80)
    assert twice["masks"].shape[1:] == (1, 60, 80) and len(twice["boxes"]) > 0


def test_a_region_is_pooled_from_the_two_scales_where_its_size_is_nearest_to_224():
    ratios = torch.tensor([200.0, 400, 600, 800, 1000])[:, None].expand(5, 4) / 600
    sides = torch.tensor([30.0, 110, 150, 224, 340, 900])
    regions = torch.stack([torch.zeros(6), torch.zeros(6), sides, sides], dim=1)
    found = adjacent_scales(regions, ratios).sort(dim=1).values.tolist()
    assert found == [[3, 4], [3, 4], [3, 4], [2, 3], [1, 2], [0, 1]]


def test_a_split_is_tested_at_all_scales_by_the_switch_alone(scenes):
    """What is found does not depend on who loads: the pyramid of the loader has the sizes that the switch says."""
    config = small_config()
    task = DetectionTask(config, scenes, LocalContext())
    network = task.network().eval()
    plainly_found = task.detect(network, "val")
    same_found = task.detect(ImprovedDetector([network]), "val")
    for one, other in zip(plainly_found.found, same_found.found, strict=True):
        np.testing.assert_allclose(one.box, other.box, atol=1e-3)
    seen = []

    class Recording(ImprovedDetector):
        def forward(self, pyramids):
            seen.extend([tuple(image.shape[:2]) for image in pyramid] for pyramid in pyramids)
            return super().forward(pyramids)

    found = task.detect(Recording([network], Improvements(refinement=True, scales=(28, 56, 112))), "val")
    assert len(found.found) == 6 and seen == [[(56, 72), (28, 36), (56, 72), (112, 144)]] * 6


def test_what_can_t_be_is_one_line(images):
    with pytest.raises(ConfigError, match=r"scales must increase from at least 1, not \[600, 400\]"):
        Improvements(scales=(600, 400))
    with pytest.raises(UserError, match="of the same kind; these have 2 classes without masks and 3 classes without"):
        ImprovedDetector([detector(images, classes=2), detector(images)])
    with pytest.raises(UserError, match="these have no member"):
        ImprovedDetector([])
