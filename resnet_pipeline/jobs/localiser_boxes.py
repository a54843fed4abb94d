"""The boxes that a localiser gives classes of a split's images, kept as result files like what detectors find."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resnet_pipeline.data.dataset import Dataset
from resnet_pipeline.data.order import Int64
from resnet_pipeline.detection.localisation import Protocol, localisation_errors, localised
from resnet_pipeline.detection.results import Results, ResultsFacts
from resnet_pipeline.detection.trained_localiser import BoxGiver, find_by_classes
from resnet_pipeline.errors import UserError
from resnet_pipeline.jobs.detect import results_path
from resnet_pipeline.jobs.evaluate import score_copies
from resnet_pipeline.jobs.search import bring_results, searched
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)


def boxes_of_classes(
    workspace: Workspace,
    trained: BoxGiver,
    dataset: Dataset,
    split: str,
    classes: Int64,
    *,
    classifier: str = "",
    protocol: Protocol = "dense",
    sides: tuple[int, ...] | None = None,
    workers: int | None = None,
) -> tuple[Results, Path, str]:
    """Return a box for each of ``classes`` int64 [N, k] of a split's images, its result file, and that one's protocol.

    What is kept is read again; what was interrupted goes on. ``classifier`` is the SHA-256 of the network that named
    the classes; "": they are true. ``workers`` of Ray find them, None as `TestSpec` has it. Raises UserError if the
    split has no boxes of its classes to compare with, or the dataset has other classes.

    Example: ``boxes_of_classes(workspace, load_localiser(run.path), dataset, "val", labels[:, None])[0].found``
    """
    localised(dataset, split)
    if trained.classes != tuple(dataset.classes):
        raise UserError(
            f"{trained.config.recipe} was trained on {len(trained.classes)} classes that are not those of "
            f"{dataset.name!r}, so it can't be tested on it"
        )
    name = trained.tested_as(protocol, sides) + (f"-of-{classifier[:12]}" if classifier else "")
    path = results_path(workspace, dataset.fingerprint, split, name, trained.weights_sha256)
    facts = ResultsFacts(
        weights_sha256=trained.weights_sha256, dataset_fingerprint=dataset.fingerprint, split=split, protocol=name,
        seconds=0.0,
    )  # fmt: skip
    copies = score_copies(workspace)
    kept = bring_results(path, facts, dataset, copies)
    if kept is not None and [each.label.tolist() for each in kept[0].found] == classes.tolist():
        _log.info("%s: its boxes in %s of %s are kept from before", trained.config.recipe, split, dataset.name)
        return kept[0], path, name
    find = partial(find_by_classes, trained, classes, protocol, sides)
    results, _ = searched(
        trained.config.recipe, find, trained.config.micro_batch, dataset, facts, path, copies, workspace=workspace,
        workers=workers,
    )  # fmt: skip
    return results, path, name


def localised_wrongly(dataset: Dataset, results: Results) -> npt.NDArray[np.bool_]:
    """Return which of a split's images that have boxes of their class are localised wrongly, bool [N].

    Raises UserError if the results are not those of a localiser: as many boxes for each image, one at least.

    Example: ``localised_wrongly(dataset, read_results(path, dataset, "val")).mean()``
    """
    counts = {len(each) for each in results.found}
    if len(counts) != 1 or counts == {0}:
        raise UserError("these are no boxes of a localiser, which gives each image as many")
    classes, boxes = (np.stack([getattr(each, name) for each in results.found]) for name in ("label", "box"))
    return localisation_errors(dataset, results.split, classes, boxes)
