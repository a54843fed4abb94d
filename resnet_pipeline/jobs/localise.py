"""ImageNet localisation: the boxes that a localiser gives the true classes, or a classifier's five likeliest."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.data.manifest import read_run_config
from resnet_pipeline.data.order import Int64
from resnet_pipeline.detection.localisation import LocalisationTask, Protocol, localisation_errors
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.statistics import error_interval
from resnet_pipeline.evaluation.trained_model import MODEL_FILES, check_result
from resnet_pipeline.files import write_json
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.jobs.references import RunFolder, parse
from resnet_pipeline.models.weights import load_own_weights
from resnet_pipeline.records import plain
from resnet_pipeline.training.context import LocalContext
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

GUESSES = 5
"""Classes of an image that a classifier may name, each with a box (Russakovsky et al., 2015, section 4.2)."""


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """How many images of a split are localised wrongly, in percent, with its 95 % interval.

    ``classes`` says whose they are: "truth", or a classifier, which names five.
    """

    run: str
    dataset: str
    split: str
    protocol: str
    classes: str
    images: int
    error: float
    interval: tuple[float, float]


def localise(
    workspace: Workspace,
    reference: str,
    dataset_name: str,
    *,
    split: str | None = None,
    protocol: Protocol = "dense",
    scales: tuple[int, ...] | None = None,
    classifier: str | None = None,
) -> Localisation:
    """Test a localiser, with the true classes or with the five likeliest of a ``classifier``, whose scores are kept.

    ``dense`` tests whole images at ``scales``, by default the recipe's. What is asked for by default (`kept_file`) is
    kept in the run's directory. Raises UserError if the reference is no localiser, or the dataset has no boxes or other
    classes.

    Example: ``localise(Workspace.of(), "run", "ilsvrc2012", classifier="imagenet-resnet101").error``
    """
    folder = parse(workspace, reference)
    if not isinstance(folder, RunFolder):
        raise UserError(f"{reference} is no run; localisation is tested from a run's directory")
    dataset, split = open_dataset(workspace, dataset_name), split or open_dataset(workspace, dataset_name).eval_split
    task, network = _loaded(folder.path, dataset_name, workspace)
    if split not in dataset.splits:
        raise UserError(f"dataset {dataset_name!r} has no split {split!r}; it has {', '.join(dataset.splits)}")
    classes = dataset.splits[split].labels[:, None]
    if classifier is not None:
        classes = _likeliest(workspace, classifier, dataset_name, split)
    boxes, _ = task.localise(network, split, classes, protocol=protocol, sides=scales)
    wrong = localisation_errors(dataset, split, classes, boxes)
    found = Localisation(
        run=str(folder.path),
        dataset=dataset_name,
        split=split,
        protocol=protocol,
        classes=classifier or "truth",
        images=len(wrong),
        error=100 * float(wrong.mean()),
        interval=error_interval(wrong),
    )
    if scales is None and split == dataset.eval_split:
        write_json(kept_file(folder.path, protocol, predicted=classifier is not None), plain(found))
    return found


def kept_file(run: Path, protocol: Protocol, *, predicted: bool) -> Path:
    """Return where a run's directory keeps its test on the evaluation split, with true or with predicted classes.

    >>> str(kept_file(Path("run"), "dense", predicted=True))
    'run/localisation/dense-predicted.json'
    """
    return run / "localisation" / f"{protocol}{'-predicted' if predicted else ''}.json"


def _loaded(folder: Path, dataset_name: str, workspace: Workspace) -> tuple[LocalisationTask, torch.nn.Module]:
    for file in MODEL_FILES:
        if not (folder / file).is_file():
            raise UserError(f"{folder} has no {file}: it is no finished run")
    config, facts = read_run_config(folder / "config.json")
    if config.localisation is None:
        raise UserError(f"{folder} is of {config.recipe}, which gives no boxes of classes; train ilsvrc-loc/…")
    dataset = open_dataset(workspace, dataset_name)
    if facts.classes != tuple(dataset.classes):
        raise UserError(
            f"{folder} was trained on {len(facts.classes)} classes that are not those of {dataset_name!r}, so it can't "
            "be tested on it"
        )
    context = LocalContext()
    task = LocalisationTask(config, dataset, context, trains=False)
    network = task.network()
    check_result(folder, load_own_weights(network, folder / MODEL_FILES[0]))
    return task, network.to(context.device).eval()


def _likeliest(workspace: Workspace, classifier: str, dataset_name: str, split: str) -> Int64:
    """Return the five likeliest classes of each image of a split, int64 [N, 5], in the dataset's order."""
    (evaluation,) = evaluate_models(
        workspace, [classifier], TestSpec(dataset=dataset_name, protocol="center", split=split)
    )
    scores, samples = evaluation.scores, open_dataset(workspace, dataset_name).splits[split]
    rows = {key: row for row, key in enumerate(scores.keys)}
    probabilities = scores.probabilities[[rows[key] for key in samples.keys]]
    likeliest: Int64 = np.argsort(-probabilities, axis=1, kind="stable")[:, :GUESSES].astype(np.int64)
    return likeliest
