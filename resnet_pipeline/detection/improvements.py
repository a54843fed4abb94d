"""What the paper adds to a trained detector in testing (appendix B, Table 9): box refinement, scales, ensembles.

Each is a switch of its own and changes no weights. Global context is a part of the network: `networks.ContextHead`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import maskrcnn_inference
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes

from resnet_pipeline.config import ConfigError
from resnet_pipeline.detection.networks import Detector, Found
from resnet_pipeline.errors import UserError

PAPER_SCALES = (200, 400, 600, 800, 1000)
"""The shorter sides of the paper's multi-scale testing of detectors (appendix B)."""
_BEST_SIDE = 224.0  # of a region at the scale that it is pooled from (He et al., 2014, section 3.3: its area is 224²)
_VOTING = 0.5  # the least IoU of a box that votes (Gidaris and Komodakis, 2015, section 5)
_LEAST_SIDE = 1e-2  # of a box that is kept, as torchvision


@dataclass(frozen=True, kw_only=True)
class Improvements:
    """How a detector is tested beyond one pass over one image (the paper, appendix B); with the defaults plainly."""

    refinement: bool = False
    """Whether each proposal's box is pooled again, and its new score and box join the first ones; what NMS leaves is
    replaced by the mean of the boxes around it, weighted by their scores."""
    scales: tuple[int, ...] = ()
    """Shorter sides at which regions are pooled, each from the two where its size is nearest to 224 pixels; the larger
    of both features counts (maxout). Proposals stay those of one size. Empty: that size alone."""

    def __post_init__(self) -> None:
        if list(self.scales) != sorted(set(self.scales)) or any(scale < 1 for scale in self.scales):
            raise ConfigError(f"scales must increase from at least 1, not {list(self.scales)}")

    @property
    def name(self) -> str:
        """What they are called in a protocol's name.

        >>> Improvements(refinement=True, scales=(400, 600)).name
        '-refined-scales-400-600'
        """
        sides = "-".join(map(str, self.scales))
        return ("-refined" if self.refinement else "") + (f"-scales-{sides}" if sides else "")


class ImprovedDetector(nn.Module):
    """One detector, or an ensemble of several, in testing.

    Of several the proposals are put together, and the probabilities, box deltas and masks of each region averaged.
    Raises UserError if their classes differ, or some have masks and others not.

    Example: ``ImprovedDetector([detector], Improvements(refinement=True))([[image]])``
    """

    def __init__(
        self,
        members: Sequence[Detector],
        improvements: Improvements = Improvements(),
    ) -> None:
        super().__init__()
        kinds = {(_classes(member), member.rcnn.roi_heads.has_mask()) for member in members}
        if len(kinds) != 1:
            said = " and ".join(f"{classes} classes {'with' if masks else 'without'} masks" for classes, masks in kinds)
            raise UserError(f"an ensemble is of detectors of the same kind; these have {said or 'no member'}")
        self.members = nn.ModuleList(members)
        self.improvements = improvements
        self.eval()

    def forward(self, pyramids: Sequence[Sequence[torch.Tensor]]) -> list[Found]:
        """Return what is found in each image, in pixels of the first of its pyramid.

        A pyramid is the image uint8 [H, W, 3] for the proposals, and the same at each of ``improvements.scales``.
        """
        return [self._found(pyramid) for pyramid in pyramids]

    def _found(self, pyramid: Sequence[torch.Tensor]) -> Found:
        base, others = pyramid[0], pyramid[1:]
        shape = (base.shape[0], base.shape[1])
        tests = []
        for member in self.members:
            assert isinstance(member, Detector)
            first = _View.of(member, base, shape)
            views = [_View.of(member, image, shape) for image in others] or [first]
            tests.append(_Test(member, first, views))
        regions = torch.cat([test.proposals() for test in tests])
        boxes, scores = self._scored(tests, regions, shape)
        if self.improvements.refinement:
            best = scores[:, 1:].argmax(dim=1) + 1
            again, new = self._scored(tests, boxes[torch.arange(len(boxes)), best], shape)
            boxes, scores = torch.cat([boxes, again]), torch.cat([scores, new])
        found = self._chosen(boxes, scores)
        heads = tests[0].member.rcnn.roi_heads
        if heads.has_mask():
            masks = torch.stack([test.masks(found) for test in tests]).mean(dim=0)
            found["masks"] = masks
        whole: list[Found] = tests[0].member.rcnn.transform.postprocess([found], [shape], [shape])
        return whole[0]

    def _scored(
        self, tests: Sequence[_Test], regions: torch.Tensor, shape: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return boxes float [K, classes + 1, 4] and probabilities float [K, classes + 1] of regions; 0: background."""
        both = [test.scored(regions) for test in tests]
        scores = torch.stack([one for one, _ in both]).mean(dim=0)
        deltas = torch.stack([one for _, one in both]).mean(dim=0)
        boxes = tests[0].member.rcnn.roi_heads.box_coder.decode(deltas, [regions])
        return clip_boxes_to_image(boxes, shape), scores

    def _chosen(self, boxes: torch.Tensor, scores: torch.Tensor) -> Found:
        """Return what is left of all boxes, as torchvision's ``postprocess_detections``, and then by voting."""
        heads: Any = self.members[0].get_submodule("rcnn.roi_heads")
        labels = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)[:, 1:].reshape(-1)
        boxes, scores = boxes[:, 1:].reshape(-1, 4), scores[:, 1:].reshape(-1)
        rows = torch.where(scores > heads.score_thresh)[0]
        rows = rows[remove_small_boxes(boxes[rows], _LEAST_SIDE)]
        boxes, scores, labels = boxes[rows], scores[rows], labels[rows]
        rows = batched_nms(boxes, scores, labels, heads.nms_thresh)[: heads.detections_per_img]
        chosen = voted(boxes, scores, labels, rows) if self.improvements.refinement else boxes[rows]
        return {"boxes": chosen, "scores": scores[rows], "labels": labels[rows]}


def voted(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the boxes float [K, 4] of ``rows`` int64 [K] after voting (Gidaris and Komodakis, 2015, section 5).

    Each is the mean of all ``boxes`` float [N, 4] of its label that overlap it with an IoU of at least 0.5, itself
    included, weighted by their scores, which are positive.

    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 14], [50, 50, 60, 60]])
    >>> voted(boxes, torch.tensor([0.75, 0.25, 0.5]), torch.tensor([1, 1, 1]), torch.tensor([0])).tolist()
    [[0.0, 0.0, 10.0, 11.0]]
    """
    near = (box_iou(boxes[rows], boxes) >= _VOTING) & (labels[rows][:, None] == labels[None])
    weights = near * scores
    mean: torch.Tensor = weights @ boxes / weights.sum(dim=1, keepdim=True)
    return mean


def adjacent_scales(regions: torch.Tensor, ratios: torch.Tensor) -> torch.Tensor:
    """Return for each region the places of the two scales at which its size is nearest to 224 pixels, int64 [K, 2].

    ``regions`` float [K, 4] in pixels of an image, ``ratios`` float [S, 4] say how many of a scale's image one of it
    is. The two nearest of increasing scales are neighbours. [K, 1] if there is one scale.

    >>> adjacent_scales(torch.tensor([[0.0, 0, 100, 100]]), torch.tensor([[0.5], [1], [2], [4]]).expand(4, 4)).tolist()
    [[2, 3]]
    """
    width, height = regions[:, 2] - regions[:, 0], regions[:, 3] - regions[:, 1]
    side = (width * height).clamp(min=1.0).sqrt()[:, None] * (ratios[:, 0] * ratios[:, 1]).sqrt()
    return (side / _BEST_SIDE).log().abs().topk(min(2, len(ratios)), dim=1, largest=False).indices


@dataclass(frozen=True)
class _View:
    """An image at one size as a member's backbone sees it; ``ratio`` float [4]: pixels of it for one of the base."""

    images: ImageList
    maps: dict[str, torch.Tensor]
    ratio: torch.Tensor

    @classmethod
    def of(cls, member: Detector, image: torch.Tensor, base: tuple[int, int]) -> _View:
        images, _ = member.rcnn.transform([member.normalize(image[None])[0]])
        y, x = image.shape[0] / base[0], image.shape[1] / base[1]
        return cls(images, member.rcnn.backbone(images.tensors), torch.tensor([x, y, x, y], device=image.device))


@dataclass(frozen=True)
class _Test:
    """A member of the ensemble with an image: at the size of the proposals, and at those of the regions."""

    member: Detector
    base: _View
    views: Sequence[_View]

    def proposals(self) -> torch.Tensor:
        """Return the member's own proposals float [P, 4]."""
        found: torch.Tensor = self.member.rcnn.rpn(self.base.images, self.base.maps)[0][0]
        return found

    def scored(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return regions' probabilities float [K, classes + 1] and box deltas float [K, (classes + 1) · 4]."""
        logits, deltas = self.member.rcnn.roi_heads.box_predictor(self._features(regions))
        return logits.softmax(dim=-1), deltas

    def masks(self, found: Found) -> torch.Tensor:
        """Return the masks of what was found, as probabilities float [K, 1, M, M] in its boxes."""
        heads = self.member.rcnn.roi_heads
        pooled = heads.mask_roi_pool(self.base.maps, [found["boxes"]], self.base.images.image_sizes)
        logits = heads.mask_predictor(heads.mask_head(pooled))
        masks: torch.Tensor = maskrcnn_inference(logits, [found["labels"]])[0]
        return masks

    def _features(self, regions: torch.Tensor) -> torch.Tensor:
        """Return the features float [K, D] of regions: of two scales the larger value of each."""
        chosen = adjacent_scales(regions, torch.stack([view.ratio for view in self.views]))
        merged: torch.Tensor | None = None
        for place, view in enumerate(self.views):
            rows = (chosen == place).any(dim=1).nonzero()[:, 0]
            if len(rows) == 0 and merged is not None:
                continue
            features = self._pooled(view, regions[rows] * view.ratio)
            if merged is None:
                merged = features.new_full((len(regions), features.shape[1]), -torch.inf)
            merged[rows] = torch.maximum(merged[rows], features)
        assert merged is not None  # there is a view
        return merged

    def _pooled(self, view: _View, regions: torch.Tensor) -> torch.Tensor:
        heads = self.member.rcnn.roi_heads
        pooled = heads.box_roi_pool(view.maps, [regions], view.images.image_sizes)
        features: torch.Tensor = heads.box_head(pooled)
        return features


def _classes(detector: Detector) -> int:
    layer: Any = detector.rcnn.roi_heads.box_predictor.cls_score
    return int(layer.out_features) - 1
