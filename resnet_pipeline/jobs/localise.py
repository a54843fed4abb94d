"""ImageNet localisation: boxes of true classes, or of a classifier's five likeliest, by localisers and R-CNNs."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resnet_pipeline.data.dataset import Dataset, open_dataset
from resnet_pipeline.data.order import Int64
from resnet_pipeline.detection.box_files import BoxFacts, Float32, classes_sha256, kept_boxes
from resnet_pipeline.detection.localisation import Protocol, localisation_errors
from resnet_pipeline.detection.metrics import Float64
from resnet_pipeline.detection.rcnn import rescored
from resnet_pipeline.detection.trained import load_localiser
from resnet_pipeline.device import local_device
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.statistics import error_interval
from resnet_pipeline.files import write_json
from resnet_pipeline.jobs.box_networks import BoxNetwork, load_box_network, localiser_boxes
from resnet_pipeline.jobs.evaluate import evaluate_models
from resnet_pipeline.jobs.localiser_boxes import boxes_of_classes, localised_wrongly
from resnet_pipeline.jobs.references import RunFolder, folder_of, parse
from resnet_pipeline.progress import progress
from resnet_pipeline.records import plain
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

GUESSES = 5
"""Classes of an image that a classifier may name, each with a box (Russakovsky et al., 2015, section 4.2)."""


@dataclass(frozen=True, kw_only=True)
class Localisation:
    """How many images of a split are localised wrongly, in percent, with its 95 % interval.

    ``classes`` says whose they are: "truth", or a classifier, which names five. ``run`` is the localiser's directory,
    of several with " + " between, or its registered name; ``rcnns`` are those of the R-CNNs that looked at the boxes
    again. ``test`` is the protocol of the result file, ``results``, which has a localiser's boxes; of R-CNNs there is
    none.
    """

    run: str
    dataset: str
    split: str
    protocol: str
    classes: str
    images: int
    error: float
    interval: tuple[float, float]
    rcnns: tuple[str, ...] = ()
    test: str = ""
    results: str = ""


def localise(
    workspace: Workspace,
    references: str | Sequence[str],
    dataset_name: str,
    *,
    rcnns: Sequence[str] = (),
    split: str | None = None,
    protocol: Protocol = "dense",
    scales: tuple[int, ...] | None = None,
    classifier: str | None = None,
) -> Localisation:
    """Test a localiser, with the true classes or with the five likeliest of a ``classifier``, whose scores are kept.

    ``dense`` tests whole images at ``scales``, by default the recipe's. With ``rcnns`` the best boxes of each class are
    scored and regressed by these once more, and there may be several localisers, whose boxes are taken together; those
    of one localiser are kept in its directory. Without, there is one, a run or a registered model, and its boxes are
    kept in a result file. What is asked for by default (`kept_file`) is kept in the directory of the localiser's run,
    or of the first R-CNN's. Raises UserError if the references are none of these, or the dataset has no boxes or other
    classes.

    Example: ``localise(Workspace.of(), "run", "ilsvrc2012", classifier="imagenet-resnet101").error``
    """
    names = [references] if isinstance(references, str) else list(references)
    dataset, split = open_dataset(workspace, dataset_name), split or open_dataset(workspace, dataset_name).eval_split
    if rcnns and (protocol, scales) != ("dense", None):
        raise UserError("an R-CNN looks at the boxes of whole images: leave out --protocol center and --scales")
    if len(names) > 1 and not rcnns:
        raise UserError(f"{len(names)} localisers are tested together by an R-CNN alone: name it with --rcnn")
    if split not in dataset.splits:
        raise UserError(f"dataset {dataset_name!r} has no split {split!r}; it has {', '.join(dataset.splits)}")
    classes, digest = dataset.splits[split].labels[:, None].astype(np.int64), ""
    if classifier is not None:
        classes, digest = _likeliest(workspace, classifier, dataset_name, split)
    tested: Path | None = None  # the run whose directory keeps it
    weights: list[str] = []  # of the others
    test = results = ""
    if rcnns:
        first, second = ([load_box_network(workspace, name, dataset) for name in each] for each in (names, rcnns))
        _check_stages(first, second)
        wrong = localisation_errors(dataset, split, classes, _rescored(first, second, dataset, split, classes))
        names, rcnns = ([str(each.folder) for each in stage] for stage in (first, second))
        tested, others = second[0].folder, second[1:]
        weights = [each.weights_sha256 for each in (*first, *others)] if len(first) > 1 or others else []
    else:
        named = parse(workspace, names[0])
        with folder_of(workspace, named) as folder:
            trained = load_localiser(folder)
        boxes, path, test = boxes_of_classes(
            workspace, trained, dataset, split, classes, classifier=digest, protocol=protocol, sides=scales
        )
        wrong, results = localised_wrongly(dataset, boxes), str(path)
        if isinstance(named, RunFolder):
            names, tested = [str(named.path)], named.path
    found = Localisation(
        run=" + ".join(names),
        dataset=dataset_name,
        split=split,
        protocol=protocol,
        classes=classifier or "truth",
        images=len(wrong),
        error=100 * float(wrong.mean()),
        interval=error_interval(wrong),
        rcnns=tuple(rcnns),
        test=test,
        results=results,
    )
    if tested is not None and scales is None and split == dataset.eval_split:
        write_json(kept_file(tested, protocol, predicted=classifier is not None, members=weights), plain(found))
    return found


def kept_file(run: Path, protocol: Protocol, *, predicted: bool, members: Sequence[str] = ()) -> Path:
    """Return where a run's directory keeps its test on the evaluation split, with true or with predicted classes.

    ``members`` are the weights' SHA-256 of the other networks of an ensemble.

    >>> str(kept_file(Path("run"), "dense", predicted=True))
    'run/localisation/dense-predicted.json'
    """
    others = f"-with-{hashlib.sha256(' '.join(members).encode()).hexdigest()[:16]}" if members else ""
    return run / "localisation" / f"{protocol}{'-predicted' if predicted else ''}{others}.json"


def _check_stages(first: Sequence[BoxNetwork], second: Sequence[BoxNetwork]) -> None:
    """Raise UserError unless these are localisers, and those R-CNNs that were trained on boxes of some of them."""
    for one in first:
        if one.config.localisation is None:
            raise UserError(f"{one.folder} is an R-CNN ({one.config.recipe}): name the localiser, and it with --rcnn")
    known = {one.weights_sha256 for one in first}
    for one in second:
        regions = one.config.regions
        if regions is None:
            raise UserError(f"{one.folder} is no R-CNN ({one.config.recipe}); --rcnn takes runs of ilsvrc-loc/rcnn-…")
        if regions.localiser not in known:
            raise UserError(
                f"{one.folder} was trained on the boxes of another localiser, whose weights have the SHA-256 "
                f"{str(regions.localiser)[:12]}…"
            )
    if len({one.config.augment.crop for one in second}) > 1:
        raise UserError("these R-CNNs see regions of different sizes (augment.crop), so they can't be averaged")


def _rescored(
    first: Sequence[BoxNetwork], second: Sequence[BoxNetwork], dataset: Dataset, split: str, classes: Int64
) -> Float64:
    """Return the box of each class int64 [N, k] that the R-CNNs find likeliest: float64 [N, k, 4].

    They are kept in the first R-CNN's directory, part by part while they are found.
    """
    rows = np.arange(len(classes), dtype=np.int64)
    config = second[0].config
    count = max(each.config.regions.proposals for each in second if each.config.regions)
    boxes = [localiser_boxes(each, dataset, split, rows, classes, count=count)[0] for each in first]
    weights = [each.weights_sha256 for each in (*first, *second)]
    facts = BoxFacts(
        weights_sha256=hashlib.sha256(" ".join(weights).encode()).hexdigest(),
        dataset_fingerprint=dataset.fingerprint,
        split=split,
        classes=classes_sha256(rows, classes),
        sides=tuple(side for each in first for side in each.config.views.scales),
        count=count,
        run=second[0].folder.name,
    )
    with progress(f"regions of {split}: {config.recipe}", total=len(rows)) as bar:

        def find(part: slice) -> Float32:
            found, likely = rescored(
                [each.network for each in second], dataset, split, rows[part], classes[part],
                np.concatenate([each[part] for each in boxes], axis=2), crop=config.augment.crop,
                batch_size=2 * config.micro_batch, device=local_device(), on_images=bar.advance,
            )  # fmt: skip
            return np.concatenate([found, likely[..., None]], axis=2)[:, :, None].astype(np.float32)

        best, _ = kept_boxes(second[0].folder / "localisation" / facts.name, facts, len(rows), find)
    return best[:, :, 0, :4].astype(np.float64)


def _likeliest(workspace: Workspace, classifier: str, dataset_name: str, split: str) -> tuple[Int64, str]:
    """Return the five likeliest classes of each image of a split, int64 [N, 5], and the classifier's SHA-256."""
    (evaluation,) = evaluate_models(
        workspace, [classifier], TestSpec(dataset=dataset_name, protocol="center", split=split)
    )
    scores, samples = evaluation.scores, open_dataset(workspace, dataset_name).splits[split]
    rows = {key: row for row, key in enumerate(scores.keys)}
    probabilities = scores.probabilities[[rows[key] for key in samples.keys]]
    likeliest: Int64 = np.argsort(-probabilities, axis=1, kind="stable")[:, :GUESSES].astype(np.int64)
    return likeliest, evaluation.member.weights_sha256
