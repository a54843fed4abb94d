"""The paper's networks, and highway networks beside them; this package imports no other part of the program.

>>> build_model("cifar-resnet20").fc.out_features
10
"""

from resnet_pipeline.models.fold_batch_norm import fold_batch_norm
from resnet_pipeline.models.fully_convolutional import fully_convolutional
from resnet_pipeline.models.normalize import Classifier, Normalize
from resnet_pipeline.models.registry import build_model, depth_of, model_names

__all__ = [
    "Classifier",
    "Normalize",
    "build_model",
    "depth_of",
    "fold_batch_norm",
    "fully_convolutional",
    "model_names",
]
