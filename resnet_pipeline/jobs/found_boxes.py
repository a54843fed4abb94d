"""The best boxes of a localiser in a dataset's annotated images, found once and kept in its run's directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.detection.box_files import BoxFacts, Float32, classes_sha256, kept_boxes
from resnet_pipeline.detection.localisation import localised
from resnet_pipeline.detection.proposals import find_boxes
from resnet_pipeline.detection.trained_localiser import TrainedLocaliser, load_localiser
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.progress import progress


def found_boxes(run: Path, dataset: Dataset, *, count: int) -> tuple[str, dict[str, Path]]:
    """Return the SHA-256 of a localiser's weights, and the file for each split of its best boxes of the true classes.

    They are float32 [n, 1, count, 5] of the n images of the split that have boxes (`localised`), which are seen at the
    recipe's ``views.scales``. What is in the run's directory already is read; what was interrupted goes on. Raises
    UserError if the run is no localiser's, or of other classes than the dataset's.

    Example: ``found_boxes(run.path, dataset, count=200)[1]["train"]``
    """
    trained = load_localiser(run)
    if trained.classes != tuple(dataset.classes):
        raise UserError(
            f"{run} was trained on {len(trained.classes)} classes that are not those of {dataset.name!r}, so it finds "
            "no boxes in it"
        )
    splits = ("train", dataset.eval_split)
    return trained.weights_sha256, {split: _kept(trained, run, dataset, split, count) for split in splits}


def _kept(trained: TrainedLocaliser, run: Path, dataset: Dataset, split: str, count: int) -> Path:
    rows, device = localised(dataset, split), local_device()
    classes, network = dataset.splits[split].labels[rows][:, None].astype(np.int64), trained.localiser.to(device)
    facts = BoxFacts(
        weights_sha256=trained.weights_sha256,
        dataset_fingerprint=dataset.fingerprint,
        split=split,
        classes=classes_sha256(rows, classes),
        sides=trained.sides,
        count=count,
        run=run.name,
    )
    path = run / "proposals" / facts.name
    with progress(f"boxes of {split}: {trained.config.recipe}", total=len(rows)) as bar:

        def find(part: slice) -> Float32:
            return find_boxes(
                network, dataset, split, rows[part], classes[part], sides=trained.sides, count=count,
                batch_size=trained.config.micro_batch, device=device, on_images=bar.advance,
            )  # fmt: skip

        kept_boxes(path, facts, len(rows), find)
    return path
