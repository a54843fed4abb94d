"""Everything that is computed from kept scores: statistics of networks, of pairs of them, and ensembles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from resnet_pipeline.data.dataset import open_dataset
from resnet_pipeline.errors import UserError
from resnet_pipeline.evaluation.calibration import Calibration, calibrate
from resnet_pipeline.evaluation.confusion import class_errors, confusion_pairs, label_places
from resnet_pipeline.evaluation.ensemble import (
    Combine,
    Measured,
    MemberErrors,
    average,
    fit_weights,
    greedy_selection,
    halves,
    leave_one_out,
    rows_of,
)
from resnet_pipeline.evaluation.paper import PUBLISHED_ENSEMBLE, PublishedEnsemble
from resnet_pipeline.evaluation.protocols import TestSpec
from resnet_pipeline.evaluation.real_labels import RealError, RealLabels, agreement, real_error
from resnet_pipeline.evaluation.scores import Scores, check_same_samples, read_scores
from resnet_pipeline.evaluation.statistics import McNemar, mcnemar
from resnet_pipeline.evaluation.submission import read_class_ids, write_submission
from resnet_pipeline.jobs.evaluate import Evaluation, evaluate_models
from resnet_pipeline.jobs.references import expanded
from resnet_pipeline.records import INLINE, OMIT_NONE, json_key
from resnet_pipeline.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Source:
    """Scores, of a file when they are asked for, or of an evaluation, which has them."""

    name: str
    read: Callable[[], Scores]
    evaluation: Evaluation | None = None


@dataclass(frozen=True, kw_only=True)
class KeptScores:
    """Where a network's scores are kept, the seconds that its test took, and whether they were there before."""

    seconds: float
    scores: str
    reused: bool


@dataclass(frozen=True, kw_only=True)
class MemberRow:
    """A member of an ensemble alone; ``kept`` is None if the user named the score file itself."""

    model: str
    tested: Measured = field(metadata=INLINE)
    kept: KeptScores | None = field(metadata=INLINE)


@dataclass(frozen=True, kw_only=True)
class FittedWeights:
    """Weights fitted on ``fitted_on`` images; the errors with them, and with equal ones, on ``reported_on`` others."""

    weights: tuple[float, ...]
    fitted_on: int
    reported_on: int
    weighted: Measured
    equal: Measured


@dataclass(frozen=True, kw_only=True)
class NamedErrors:
    """The errors in percent of an ensemble with a member added, or without it."""

    member: str
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class EnsembleResult:
    """An ensemble and its members; what was not asked for is None, and so is the paper's error of other classes."""

    combine: Combine
    members: tuple[MemberRow, ...] = field(metadata=json_key("models"))
    ensemble: Measured
    paper: PublishedEnsemble | None = field(default=None, metadata=OMIT_NONE)
    fitted: FittedWeights | None = field(default=None, metadata=OMIT_NONE)
    greedy: tuple[NamedErrors, ...] | None = field(default=None, metadata=OMIT_NONE)
    without: tuple[NamedErrors, ...] | None = field(default=None, metadata=OMIT_NONE)


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Images whose best probability is above ``low`` and at most ``high``: mean confidence and accuracy in 0..1."""

    low: float = field(metadata=json_key("from"))
    high: float = field(metadata=json_key("to"))
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class with its images and errors in percent."""

    name: str = field(metadata=json_key("class"))
    images: int
    top1: float
    top5: float


@dataclass(frozen=True, kw_only=True)
class ConfusionRow:
    """How many images of a class were taken for another."""

    name: str = field(metadata=json_key("class"))
    taken_for: str
    images: int


@dataclass(frozen=True, kw_only=True)
class NetworkStatistics:
    """Errors of a network, its calibration error in percent, its classes and most frequent confusions."""

    model: str
    tested: Measured = field(metadata=INLINE)
    calibration_error: float
    reliability: tuple[ReliabilityBin, ...]
    classes: tuple[ClassRow, ...]
    confusions: tuple[ConfusionRow, ...]
    real: RealError | None = field(default=None, metadata=OMIT_NONE)


@dataclass(frozen=True, kw_only=True)
class PairStatistics:
    """On how many images two networks agree, in percent, and McNemar's test of whether they err equally often."""

    first: str
    second: str
    agreement: float
    test: McNemar = field(metadata=INLINE)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Statistics of networks and of pairs of them, and the calibrations that the reliability diagram shows."""

    models: tuple[NetworkStatistics, ...]
    pairs: tuple[PairStatistics, ...]
    calibrations: Mapping[str, Calibration]


def score_sources(workspace: Workspace, references: Sequence[str], test: TestSpec | None) -> list[Source]:
    """Return the scores of MODEL references and of score files (``….parquet``); missing ones are computed first.

    Score files alone need no ``test``; raises UserError for a MODEL without one.

    Example: ``score_sources(Workspace.of(), ["digits-resnet8"], TestSpec(dataset="digits", protocol="10-crop"))``
    """
    references = expanded(workspace, references, allow_partial=test is not None and test.allow_partial)
    models = [reference for reference in references if not reference.endswith(".parquet")]
    if models and test is None:
        raise UserError(f"{models[0]} is a model, so --dataset must say what to test it on")
    found: dict[str, Source] = {}
    if models and test is not None:
        for evaluation in evaluate_models(workspace, models, test):
            found[evaluation.reference] = _source(evaluation)
    for reference in references:
        if reference not in found:
            found[reference] = Source(name=reference, read=partial(read_scores, Path(reference)))
    return [found[reference] for reference in dict.fromkeys(references)]


def evaluations_of(sources: Sequence[Source]) -> list[Evaluation]:
    """Return the evaluations that the sources come from; a score file has none."""
    return [source.evaluation for source in sources if source.evaluation is not None]


def analyse(
    sources: Sequence[Source],
    *,
    classes: Sequence[str] | None = None,
    real_labels: RealLabels | None = None,
    most: int = 10,
) -> Analysis:
    """Compute each network's errors with intervals, calibration, worst classes, confusions, and each pair's agreement.

    ``classes`` are names to show instead of numbers. Raises UserError if scores are of different samples or a label
    is not known.

    Example: ``analyse(score_sources(Workspace.of(), references, test)).pairs``
    """
    # all scores, of the same images
    scores = [source.read() for source in sources]
    check_same_samples(scores)

    def named(number: int) -> str:
        return classes[number] if classes else str(number)

    # each network by itself
    calibrations = {
        source.name: calibrate(own.probabilities, own.labels) for source, own in zip(sources, scores, strict=True)
    }
    networks = tuple(
        NetworkStatistics(
            model=source.name,
            tested=Measured.of(own),
            calibration_error=calibrations[source.name].error,
            reliability=_reliability(calibrations[source.name]),
            classes=_class_rows(own, named),
            confusions=tuple(
                ConfusionRow(name=named(c.label), taken_for=named(c.predicted), images=c.count)
                for c in confusion_pairs(own.probabilities, own.labels, most=most)
            ),
            real=real_error(own, real_labels) if real_labels is not None else None,
        )
        for source, own in zip(sources, scores, strict=True)
    )
    # each pair: how far they agree, and McNemar's test
    wrong = [label_places(own.probabilities, own.labels) >= 1 for own in scores]
    pairs = tuple(
        PairStatistics(
            first=sources[i].name,
            second=sources[j].name,
            agreement=agreement(scores[i].probabilities, scores[j].probabilities),
            test=mcnemar(wrong[i], wrong[j]),
        )
        for i, j in itertools.combinations(range(len(sources)), 2)
    )
    return Analysis(models=networks, pairs=pairs, calibrations=calibrations)


def ensemble(
    sources: Sequence[Source],
    *,
    combine: Combine = "probabilities",
    fit: bool = False,
    greedy: bool = False,
    contributions: bool = False,
) -> EnsembleResult:
    """Average the members and return their errors and the ensemble's, with intervals.

    Each source is read once: score files one after the other, unless one of the following needs them all. ``fit`` adds
    weights fitted on a random half and the errors on the other one; ``greedy`` the curve of greedy selection;
    ``contributions`` the errors without each member. Raises UserError if the scores are of different samples.

    Example: ``ensemble(score_sources(Workspace.of(), references, test), greedy=True).ensemble.errors``
    """
    members: list[MemberRow] = []
    scores: list[Scores] = []
    all_at_once = fit or greedy or contributions

    def reading() -> Iterator[Scores]:
        for source in sources:
            own = source.read()
            members.append(MemberRow(model=source.name, tested=Measured.of(own), kept=_kept(source.evaluation)))
            if all_at_once:
                scores.append(own)
            yield own
            del own  # before the next one is read

    def named(errors: MemberErrors) -> NamedErrors:
        return NamedErrors(member=sources[errors.member].name, top1=errors.top1, top5=errors.top5)

    # one pass over the sources: the members' errors, and their mean
    mean = average(reading(), combine=combine)
    measured, ilsvrc = Measured.of(mean), mean.probabilities.shape[1] == 1000
    del mean  # before the members are looked at again
    return EnsembleResult(
        combine=combine,
        members=tuple(members),
        ensemble=measured,
        paper=PUBLISHED_ENSEMBLE if ilsvrc else None,
        fitted=_fitted(scores, combine) if fit else None,
        greedy=tuple(map(named, greedy_selection(scores, combine=combine))) if greedy else None,
        without=tuple(map(named, leave_one_out(scores, combine=combine))) if contributions else None,
    )


def submit(workspace: Workspace, sources: Sequence[Source], dataset_name: str, ids: Path, output: Path) -> int:
    """Write the ILSVRC submission of the sources' mean; return its number of images.

    Example: ``submit(Workspace.of(), sources, "ilsvrc2012", Path("meta.mat"), Path("submission.txt"))``
    """
    dataset = open_dataset(workspace, dataset_name)
    class_ids = read_class_ids(ids, dataset.classes)
    mean = average(source.read() for source in sources)
    write_submission(mean, class_ids, output)
    return len(mean.keys)


def _source(evaluation: Evaluation) -> Source:
    scores = evaluation.scores
    return Source(name=evaluation.reference, read=lambda: scores, evaluation=evaluation)


def _kept(evaluation: Evaluation | None) -> KeptScores | None:
    if evaluation is None:
        return None
    return KeptScores(seconds=evaluation.scores.seconds, scores=str(evaluation.path), reused=evaluation.reused)


def _fitted(scores: Sequence[Scores], combine: Combine) -> FittedWeights:
    """Fit on one half, report on the other, beside equal weights on that same half."""
    fit, report = halves(len(scores[0].keys))
    weights = fit_weights([rows_of(own, fit) for own in scores], combine=combine)
    held = [rows_of(own, report) for own in scores]
    return FittedWeights(
        weights=tuple(weights),
        fitted_on=len(fit),
        reported_on=len(report),
        weighted=Measured.of(average(held, weights=weights, combine=combine)),
        equal=Measured.of(average(held, combine=combine)),
    )


def _class_rows(scores: Scores, named: Callable[[int], str]) -> tuple[ClassRow, ...]:
    """Return the classes that have images."""
    found = class_errors(scores.probabilities, scores.labels)
    return tuple(
        ClassRow(name=named(i), images=int(n), top1=float(top1), top5=float(top5))
        for i, (n, top1, top5) in enumerate(zip(found.images, found.top1, found.top5, strict=True))
        if n
    )


def _reliability(found: Calibration) -> tuple[ReliabilityBin, ...]:
    """Return the bins that have images."""
    return tuple(
        ReliabilityBin(
            low=float(low),
            high=float(high),
            images=int(n),
            confidence=float(confidence),
            accuracy=float(accuracy),
        )
        for low, high, n, confidence, accuracy in zip(
            found.edges[:-1], found.edges[1:], found.images, found.confidence, found.accuracy, strict=True
        )
        if n
    )
