"""The evaluation of detectors: what they find, kept as COCO's result files; average precision from the kept files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from resnet_pipeline.data.dataset import Dataset, open_dataset, split_of_objects
from resnet_pipeline.detection.finding import find_by_detector
from resnet_pipeline.detection.improvements import ImprovedDetector, Improvements
from resnet_pipeline.detection.metrics import CocoMetrics, Points, coco_metrics, voc_mean_precision
from resnet_pipeline.detection.networks import Detector
from resnet_pipeline.detection.results import Results, ResultsFacts
from resnet_pipeline.detection.trained import TrainedDetector, load_detector
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.scores import score_path
from resnet_pipeline.evaluation.scoring import chosen_samples
from resnet_pipeline.jobs.evaluate import score_copies
from resnet_pipeline.jobs.references import folder_of, parse
from resnet_pipeline.jobs.search import bring_results, searched
from resnet_pipeline.records import JsonObject
from resnet_pipeline.report.model_card import MeasuredPrecision
from resnet_pipeline.workspace import Workspace

_log = logging.getLogger(__name__)

SAMPLES = 500
"""Samples of the images, each as many as there are, that an interval is from."""


@dataclass(frozen=True, kw_only=True)
class DetectionTest:
    """What detectors are tested on, and with which ``improvements`` (the paper, Table 9).

    ``images`` is how many, evenly spaced, None for all; ``workers`` of Ray test them, None as `TestSpec` has it.
    ``voc`` also gives Pascal VOC's figure, of 11 points or all, at an IoU of 0.5.
    """

    dataset: str
    split: str | None = None
    images: int | None = None
    workers: int | None = None
    voc: Points | None = None
    samples: int = SAMPLES
    improvements: Improvements = field(default_factory=Improvements)


@dataclass(frozen=True, kw_only=True)
class DetectorEvaluation:
    """What a detector came to on a split, in percent with 95 % intervals; ``path`` is its result file.

    ``masks`` is None for a detector without masks, ``voc`` the mean average precision and its interval if it was asked
    for; ``reused`` says whether the file was kept from before. ``seconds`` are what the test took.
    """

    reference: str
    recipe: str
    network: str
    classes: tuple[str, ...]
    weights_sha256: str
    protocol: str
    split: str
    images: int
    boxes: CocoMetrics
    masks: CocoMetrics | None
    voc: tuple[float, tuple[float, float] | None] | None
    results: Results
    path: Path
    seconds: float
    reused: bool

    def boxes_measured(self) -> MeasuredPrecision:
        """Return the figures of the boxes as cards and pages have them."""
        return _measured("boxes", self.boxes, self)

    def measured(self) -> list[MeasuredPrecision]:
        """Return the figures of the boxes, and of the masks if there are any, as cards and pages have them."""
        return [self.boxes_measured(), *([] if self.masks is None else [_measured("masks", self.masks, self)])]

    def row(self) -> JsonObject:
        """Return what ``evaluate --json`` says of it; ``scores`` is the result file."""
        return {
            "model": self.reference,
            "network": self.network,
            "weights_sha256": self.weights_sha256,
            "split": self.split,
            "protocol": self.protocol,
            "images": self.images,
            **{name: value for name, value in asdict(self.boxes).items() if name != "per_class"},
            "per_class": dict(zip(self.classes, self.boxes.per_class, strict=True)),
            **({} if self.masks is None else {"masks": asdict(self.masks)}),
            **({} if self.voc is None else {"voc": {"map": self.voc[0], "interval": self.voc[1]}}),
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / self.seconds, 2) if self.seconds else 0.0,
            "scores": str(self.path),
            "reused": self.reused,
        }


def detection_test(
    test: TestSpec | None, *, voc: Points | None = None, refine: bool = False, registered_as: str | None = None
) -> DetectionTest:
    """Return how detectors are tested where classifiers would be by ``test``; its ``scales`` are their regions'.

    Raises UserError if there is no dataset, or for a name: only single detectors are registered.

    Example: ``detection_test(TestSpec(dataset="coco", images=500, workers=8), refine=True)``
    """
    if test is None:
        raise UserError("detectors are tested on a dataset: name it with --dataset")
    if registered_as is not None:
        raise UserError("an ensemble of detectors can't be registered: leave --register out")
    return DetectionTest(
        dataset=test.dataset,
        split=test.split,
        images=test.images,
        workers=test.workers,
        voc=voc,
        improvements=Improvements(refinement=refine, scales=tuple(test.scales or ())),
    )


def load_named_detector(workspace: Workspace, text: str) -> TrainedDetector:
    """Load the detector that a text names; UserError if it points nowhere or at a classifier.

    Example: ``load_named_detector(Workspace.of(), "scenes-maskrcnn-resnet8-c4").classes``
    """
    with folder_of(workspace, parse(workspace, text)) as folder:
        return load_detector(folder)


def evaluate_detectors(
    workspace: Workspace, references: Sequence[str], test: DetectionTest
) -> list[DetectorEvaluation]:
    """Test detectors; what was found before is kept in result files, from which the figures are computed.

    Raises UserError if a reference is no detector, or the dataset has no objects or other classes.

    Example: ``evaluate_detectors(Workspace.of(), ["run"], DetectionTest(dataset="scenes"))[0].boxes.ap50``
    """
    dataset, split = _tested(workspace, test)
    return [_evaluated(workspace, [text], dataset, split, test) for text in dict.fromkeys(references)]


def evaluate_detectors_together(
    workspace: Workspace, references: Sequence[str], test: DetectionTest
) -> DetectorEvaluation:
    """Test detectors as one: the union of their proposals, their region classifiers averaged (the paper, appendix B).

    Images have the size of the first's. Raises UserError as `evaluate_detectors`, and if some have masks and some not.

    Example: ``evaluate_detectors_together(Workspace.of(), ["run", "other"], DetectionTest(dataset="scenes")).boxes.ap``
    """
    dataset, split = _tested(workspace, test)
    return _evaluated(workspace, list(dict.fromkeys(references)), dataset, split, test)


def results_path(
    workspace: Workspace, dataset_fingerprint: str, split: str, protocol: str, weights_sha256: str
) -> Path:
    """Return where what a detector finds is kept: among the score files, as JSON in COCO's form."""
    return score_path(
        workspace.scores,
        dataset_fingerprint=dataset_fingerprint,
        split=split,
        protocol=protocol,
        weights_sha256=weights_sha256,
    ).with_suffix(".json")


def figures_of(
    dataset: Dataset, results: Results, *, masks: bool, voc: Points | None = None, samples: int = SAMPLES
) -> tuple[CocoMetrics, CocoMetrics | None, tuple[float, tuple[float, float] | None] | None]:
    """Return the figures of boxes and, with ``masks``, of masks, and VOC's if it is asked for.

    Example: ``figures_of(dataset, results, masks=False)[0].ap``
    """
    boxes = coco_metrics(dataset, results, samples=samples)
    of_masks = coco_metrics(dataset, results, kind="segm", samples=samples) if masks else None
    objects = dataset.splits[results.split].objects
    if voc is None or objects is None:
        return boxes, of_masks, None
    each = [objects.of(sample) for sample in range(len(results.found))]
    found = voc_mean_precision(each, results.found, len(dataset.classes), points=voc, samples=samples)
    return boxes, of_masks, found


def _measured(kind: str, found: CocoMetrics, evaluation: DetectorEvaluation) -> MeasuredPrecision:
    whole, half = found.intervals or ((found.ap, found.ap), (found.ap50, found.ap50))  # none: nothing was found
    return MeasuredPrecision(
        kind=kind,
        split=evaluation.split,
        images=evaluation.images,
        ap=found.ap,
        ap_interval=whole,
        ap50=found.ap50,
        ap50_interval=half,
    )


def _tested(workspace: Workspace, test: DetectionTest) -> tuple[Dataset, str]:
    """Return the dataset, with the images of the split that are tested alone, and the split."""
    dataset = open_dataset(workspace, test.dataset)
    split = test.split or dataset.eval_split
    split_of_objects(dataset, split)
    return tested_part(dataset, split, test.images), split


def tested_part(dataset: Dataset, split: str, images: int | None) -> Dataset:
    """Return the dataset with so many evenly spaced images of a split alone; None: with all of them.

    Example: ``tested_part(open_dataset(workspace, "coco"), "val", 500)``
    """
    return dataset if images is None else dataset.part(split, chosen_samples(len(dataset.splits[split]), images))


def _evaluated(
    workspace: Workspace, texts: Sequence[str], dataset: Dataset, split: str, test: DetectionTest
) -> DetectorEvaluation:
    members = [load_named_detector(workspace, text) for text in texts]
    for name, member in zip(texts, members, strict=True):
        if member.classes != tuple(dataset.classes):
            raise UserError(
                f"{name} was trained on {len(member.classes)} classes that are not those of {dataset.name!r}, so it "
                "can't be tested on it"
            )
    text, trained = " + ".join(texts), members[0]
    digests = [member.weights_sha256 for member in members]
    weights = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    protocol = trained.protocol + test.improvements.name
    if test.images is not None:
        protocol += f"-{len(dataset.splits[split])}-images"
    detector: Detector | ImprovedDetector = trained.detector
    if len(members) > 1 or test.improvements != Improvements():
        detector = ImprovedDetector([member.detector for member in members], test.improvements)
    path = results_path(workspace, dataset.fingerprint, split, protocol, weights)
    facts = ResultsFacts(
        weights_sha256=weights, dataset_fingerprint=dataset.fingerprint, split=split, protocol=protocol, seconds=0.0,
        members=tuple(digests) if len(digests) > 1 else (),
    )  # fmt: skip
    copies = score_copies(workspace)
    kept = bring_results(path, facts, dataset, copies)
    if kept is None:
        results, facts = searched(
            text, partial(find_by_detector, detector, trained.config), trained.config.micro_batch, dataset, facts, path,
            copies, workspace=workspace, images=test.images, workers=test.workers,
        )  # fmt: skip
    else:
        results, facts = kept
        _log.info("%s: what it finds in %s of %s is kept from before", text, split, dataset.name)
    boxes, masks, voc = figures_of(dataset, results, masks=trained.masks, voc=test.voc, samples=test.samples)
    return DetectorEvaluation(
        reference=text,
        recipe=trained.config.recipe,
        network=trained.config.model.name,
        classes=trained.classes,
        weights_sha256=weights,
        protocol=protocol,
        split=split,
        images=len(results.found),
        boxes=boxes,
        masks=masks,
        voc=voc,
        results=results,
        path=path,
        seconds=facts.seconds,
        reused=kept is not None,
    )
