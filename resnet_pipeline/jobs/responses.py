"""The layer-response job: figure 7 for any networks on any dataset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.responses import responses
from resnet_pipeline.jobs.references import expanded, load, parse
from resnet_pipeline.workspace import Workspace


def measure_responses(
    workspace: Workspace, references: Sequence[str], dataset_name: str, *, split: str | None, images: int | None
) -> dict[str, npt.NDArray[np.float64]]:
    """Return each network's standard deviations per 3×3 layer float64 [L], by reference.

    Example: ``measure_responses(Workspace.of(), ["digits-resnet8"], "digits", split=None, images=100)``
    """
    dataset = open_dataset(workspace, dataset_name)
    if split is not None and split not in dataset.splits:
        raise UserError(f"dataset {dataset.name!r} has no split {split!r}; it has {', '.join(dataset.splits)}")
    return {
        reference: responses(
            load(workspace, parse(workspace, reference)), dataset, split=split, images=images, device=local_device()
        )
        for reference in dict.fromkeys(expanded(workspace, references))
    }
