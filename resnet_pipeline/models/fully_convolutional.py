"""The fully convolutional form of a network (section 3.4): class scores at every position of a larger image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from resnet_pipeline.errors import UserError
from resnet_pipeline.models.fold_batch_norm import FoldedResNet
from resnet_pipeline.models.normalize import Classifier
from resnet_pipeline.models.resnet import ResNet


class FullyConvolutional(nn.Module):
    """Logits [N, classes, h, w] of a classifier that was trained on crops of ``crop`` pixels; the weights are shared.

    The global average pooling becomes a window of the size that the features of a crop have (7 for 224), moved by
    one; the linear classifier becomes a 1×1 convolution.
    """

    def __init__(self, classifier: Classifier, *, crop: int) -> None:
        super().__init__()
        if not isinstance(classifier.network, (ResNet, FoldedResNet)):
            raise TypeError(f"no fully convolutional form of {type(classifier.network).__name__}")
        self.normalize = classifier.normalize
        self.network = classifier.network
        self.crop = crop
        self.window = feature_size(self.network, crop)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the map of logits for images uint8 [N, H, W, 3]; UserError if H or W is less than the crop's."""
        height, width = images.shape[1:3]
        if min(height, width) < self.crop:
            raise UserError(f"images of {height} × {width} pixels are smaller than the crops of training, {self.crop}")
        features = self.network.features(self.normalize(images))
        pooled = F.avg_pool2d(features, self.window, stride=1)
        return F.conv2d(pooled, self.network.fc.weight[:, :, None, None], self.network.fc.bias)


def fully_convolutional(classifier: Classifier, *, crop: int) -> FullyConvolutional:
    """Return the fully convolutional form of a classifier trained on crops of ``crop`` × ``crop`` pixels.

    Example: ``fully_convolutional(member.classifier, crop=224)(images)``
    """
    return FullyConvolutional(classifier, crop=crop)


def feature_size(network: ResNet | FoldedResNet, crop: int) -> int:
    """Return the side of the last map for a crop of so many pixels.

    Example: ``feature_size(build_model("resnet50"), 224)`` is 7.
    """
    size = crop
    if network.architecture.stem == "imagenet":
        size = (size + 1) // 2  # the first convolution rounds up
        size = size // 2 if network.architecture.pooling == "caffe" else (size + 1) // 2
    for _ in network.architecture.stages[1:]:
        size = (size + 1) // 2
    return size
