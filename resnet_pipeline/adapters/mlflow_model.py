"""What ``mlflow.pyfunc.load_model`` runs for a registered network; no pickle is involved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from resnet_pipeline.evaluation.members import load_folder


class ServedNetwork:
    """A network as an MLflow python function."""

    def __init__(self, folder: Path) -> None:
        self.member = load_folder(folder)
        self.member.classifier.eval()

    def predict(self, images: npt.NDArray[np.uint8], params: dict[str, Any] | None = None) -> npt.NDArray[np.float32]:
        """Return class probabilities float32 [N, classes] for images uint8 [N, H, W, 3], RGB."""
        with torch.inference_mode():
            logits = self.member.classifier(torch.as_tensor(np.ascontiguousarray(images)))
            probabilities: npt.NDArray[np.float32] = torch.softmax(logits, dim=1).numpy()
        return probabilities


def _load_pyfunc(path: str) -> ServedNetwork:
    """MLflow's entry point: ``path`` is the folder that was logged."""
    return ServedNetwork(Path(path))
