"""A distributed pipeline that reproduces "Deep Residual Learning for Image Recognition" (He et al., 2015).

``load_model``, ``open_dataset`` and ``train`` are imported from ``resnet_pipeline.api`` at their first use, so that
importing this package costs nothing.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_pipeline.api import load_model as load_model
    from resnet_pipeline.api import open_dataset as open_dataset
    from resnet_pipeline.api import train as train

__all__ = ["__version__"]  # what stands here; those of the api are no part of ``import *``, which would import PyTorch

__version__ = "0.1.0"

# Before PyTorch is imported: how long OpenMP's threads spin before they sleep, when they wait for one another. With
# the default, fifteen times as long, a step beside another process on the same cores takes 2 to 4 times the time;
# threads that sleep at once lose a fifth on idle cores (docs/LOG.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent, warnings too, until someone sets up logging


def __getattr__(name: str) -> Any:
    if name not in ("load_model", "open_dataset", "train"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from resnet_pipeline import api

    return getattr(api, name)
