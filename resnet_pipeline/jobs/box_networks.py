"""Trained localisers and R-CNNs, loaded from their runs, and the boxes that a localiser finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.manifest import read_run_config
from resnet_pipeline.data.order import Int64
from resnet_pipeline.detection.box_files import (
    BoxFacts,
    Float32,
    classes_sha256,
    kept_boxes,
)
from resnet_pipeline.detection.localisation import LocalisationTask
from resnet_pipeline.detection.localiser import Localiser
from resnet_pipeline.detection.proposals import find_boxes
from resnet_pipeline.detection.regions import RegionTask
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.trained_model import MODEL_FILES, check_result
from resnet_pipeline.jobs.references import RunFolder, parse
from resnet_pipeline.models.weights import load_own_weights
from resnet_pipeline.progress import progress
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class BoxNetwork:
    """A trained localiser, or an R-CNN, on this machine's device, in evaluation mode: where it is, and its weights."""

    folder: Path
    config: RunConfig
    weights_sha256: str
    network: nn.Module
    task: LocalisationTask | RegionTask


def load_box_network(workspace: Workspace, reference: str, dataset: Dataset) -> BoxNetwork:
    """Load a finished run of ``ilsvrc-loc/…``; UserError if it is no such run, or of other classes than the dataset's.

    Example: ``load_box_network(Workspace.of(), "run", dataset).network``
    """
    found = parse(workspace, reference)
    if not isinstance(found, RunFolder):
        raise UserError(f"{reference} is no run; localisation is tested from a run's directory")
    folder = found.path
    for file in MODEL_FILES:
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}: it is no finished run")
    config, facts = read_run_config(folder / "config.json")
    if config.localisation is None and config.regions is None:
        raise UserError(f"{folder} is of {config.recipe}, which gives no boxes of classes; train ilsvrc-loc/…")
    if facts.classes != tuple(dataset.classes):
        raise UserError(
            f"{folder} was trained on {len(facts.classes)} classes that are not those of {dataset.name!r}, so it can't "
            "be tested on it"
        )
    context = LocalContext(device=local_device())
    task: LocalisationTask | RegionTask = (
        RegionTask(config, dataset, context)
        if config.regions is not None
        else LocalisationTask(config, dataset, context, trains=False)
    )
    network = task.network()
    digest = load_own_weights(network, folder / MODEL_FILES[0])
    check_result(folder, digest)
    network = network.to(context.device).eval()
    return BoxNetwork(folder=folder, config=config, weights_sha256=digest, network=network, task=task)


def localiser_boxes(
    localiser: BoxNetwork, dataset: Dataset, split: str, rows: Int64, classes: Int64, *, count: int
) -> tuple[Float32, Path]:
    """Return a localiser's best boxes float32 [n, k, count, 5] of images of a split, and the file that has them.

    ``rows`` int64 [n], ``classes`` int64 [n, k]. The images are seen at the recipe's ``views.scales``. What is in the
    localiser's directory already is read; what was interrupted goes on.

    Example: ``localiser_boxes(localiser, dataset, "val", rows, labels[:, None], count=200)[0]``
    """
    config, network = localiser.config, localiser.network
    assert isinstance(network, Localiser)  # the caller has looked
    facts = BoxFacts(
        weights_sha256=localiser.weights_sha256,
        dataset_fingerprint=dataset.fingerprint,
        split=split,
        classes=classes_sha256(rows, classes),
        sides=config.views.scales,
        count=count,
        run=localiser.folder.name,
    )
    path = localiser.folder / "proposals" / facts.name
    with progress(f"boxes of {split}: {config.recipe}", total=len(rows)) as bar:

        def find(part: slice) -> Float32:
            return find_boxes(
                network, dataset, split, rows[part], classes[part], sides=facts.sides, count=count,
                batch_size=config.micro_batch, device=local_device(), on_images=bar.advance,
            )  # fmt: skip

        boxes, _ = kept_boxes(path, facts, len(rows), find)
    return boxes, path
