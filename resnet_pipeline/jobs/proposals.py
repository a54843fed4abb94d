"""The boxes of a localiser that its R-CNN is trained and tested on: found once, kept in the localiser's run directory.

A run that is trained on them has links to the files (copies on another disk), and sends them to its home, from where
workers on other machines take them.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from resnet_pipeline.config import RunConfig
from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.data.manifest import read_run_config
from resnet_pipeline.data.order import Int64
from resnet_pipeline.detection.localisation import LocalisationTask, localised
from resnet_pipeline.detection.localiser import Localiser
from resnet_pipeline.detection.proposals import (
    BoxFacts,
    Float32,
    classes_sha256,
    facts_file,
    find_boxes,
    kept_boxes,
    read_boxes,
)
from resnet_pipeline.detection.regions import RegionTask, boxes_file
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.trained_model import MODEL_FILES, check_result
from resnet_pipeline.files import replacing
from resnet_pipeline.jobs.references import RunFolder, parse
from resnet_pipeline.models.weights import load_own_weights
from resnet_pipeline.progress import progress
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.training.mirror import bring, keep
from resnet_pipeline.training.run_directory import RunDirectory
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Proposals:
    """The boxes that an R-CNN is trained on: who found them, and their file for each split."""

    reference: str
    files: Mapping[str, Path]

    def keep(self, run: RunDirectory) -> None:
        """Let the run's directory, and its home, have the files."""
        for split, source in self.files.items():
            target = boxes_file(run.path, split)
            for one, other in ((source, target), (facts_file(source), facts_file(target))):
                _link(one, other)
                there = run.home.stat(other.relative_to(run.path).as_posix()) if run.home else None
                if there is None or there.size != other.stat().st_size:
                    keep(run, other)


def proposed(
    workspace: Workspace, config: RunConfig, dataset_name: str, reference: str | None
) -> tuple[RunConfig, Proposals | None]:
    """Return the config with the SHA-256 of the localiser's weights, and the boxes that it is trained on.

    They are those of the true classes in the training images and in the evaluation split. Without a ``reference`` the
    config is returned as it is. Raises UserError if the reference is no localiser, or the config no R-CNN's.

    Example: ``proposed(Workspace.of(), run_config("ilsvrc-loc/rcnn-resnet101"), "ilsvrc2012", "run")``
    """
    regions = config.regions
    if reference is None:
        if regions is not None and regions.localiser is None:
            raise UserError(f"{config.recipe} is trained on a localiser's boxes: name its run with --proposals")
        return config, None
    if regions is None:
        raise UserError(f"--proposals is for ilsvrc-loc/rcnn-…: {config.recipe} is trained on no boxes of a localiser")
    if regions.localiser is not None:
        raise UserError("the localiser is given twice, as --proposals and as a field; leave one out")
    dataset = open_dataset(workspace, dataset_name)
    localiser = load_box_network(workspace, reference, dataset)
    if localiser.config.localisation is None:
        raise UserError(f"{localiser.folder} is an R-CNN itself ({localiser.config.recipe}); name a localiser's run")
    files = {}
    for split in ("train", dataset.eval_split):
        rows = localised(dataset, split)
        classes = dataset.splits[split].labels[rows][:, None].astype(np.int64)
        _, files[split] = localiser_boxes(localiser, dataset, split, rows, classes, count=regions.proposals)
    named = replace(regions, localiser=localiser.weights_sha256)
    _log.info("%s: is trained on the boxes of %s (%s…)", config.recipe, reference, localiser.weights_sha256[:12])
    return replace(config, regions=named), Proposals(reference, files)


def keep_proposals(proposals: Proposals | None, run: RunDirectory, splits: tuple[str, ...]) -> None:
    """Let the run have the boxes that it is trained on; UserError if they are neither given nor there.

    Example: ``keep_proposals(proposals, run, ("train", "val"))``
    """
    if proposals is not None:
        proposals.keep(run)
        return
    for split in splits:
        file = boxes_file(run.path, split)
        bring(run, facts_file(file), file)
        if not file.is_file():
            raise UserError(
                f"{run.config().recipe}: the boxes that it is to be trained on are not in {run.path}: name the "
                "localiser's run with --proposals, without the field regions.localiser"
            )


def proposer_of(run: RunDirectory) -> str | None:
    """Return the name of the localiser's run on whose boxes a run was trained; None if that is not known here.

    Example: ``proposer_of(RunDirectory.open(path))``
    """
    try:
        return read_boxes(boxes_file(run.path, "train"))[1].run
    except UserError:
        return None


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:  # another disk
            shutil.copyfile(source, temporary)
