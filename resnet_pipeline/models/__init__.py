"""The paper's networks, and highway networks beside them; no other part of the program is known here."""

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
