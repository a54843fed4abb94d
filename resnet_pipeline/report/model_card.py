"""The model card of a registered version, as markdown: data, training, errors, differences from the paper, use.

After Mitchell et al., "Model Cards for Model Reporting", 2019, as far as a program knows the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from resnet_pipeline.config import TaskName

_ERRORS = "## Errors"


@dataclass(frozen=True, kw_only=True)
class MeasuredErrors:
    """Errors in percent under a protocol (its id) on ``images`` of a split's ``of`` images, with 95 % intervals."""

    protocol: str
    split: str
    images: int
    of: int
    top1: float
    top1_interval: tuple[float, float]
    top5: float
    top5_interval: tuple[float, float]

    @property
    def complete(self) -> bool:
        """Whether every image of the split was tested."""
        return self.images == self.of


@dataclass(frozen=True, kw_only=True)
class MeasuredPrecision:
    """Average precision in percent of a detector's ``kind``, boxes or masks, on a split's images, with intervals.

    ``ap`` is over IoUs from 0.5 to 0.95, ``ap50`` at 0.5; the intervals are 95 %, over samples of the images.
    """

    kind: str
    split: str
    images: int
    ap: float
    ap_interval: tuple[float, float]
    ap50: float
    ap50_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class MeasuredLocalisation:
    """A localisation error in percent on a split's images under a protocol (its name), with a 95 % interval.

    ``classes`` says whose classes got boxes: "truth", or a classifier's name.
    """

    protocol: str
    classes: str
    split: str
    images: int
    error: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a card says. ``facts``, ``data`` and ``training`` are names with values; ``deviations`` are sentences.

    ``task`` decides which of the tests it has: a classifier's ``errors``, a detector's ``precision``, a localiser's
    ``localisation``.
    """

    title: str
    facts: Mapping[str, str]
    data: Mapping[str, str]
    training: Mapping[str, str]
    deviations: Sequence[str]
    task: TaskName = "classification"
    errors: Sequence[MeasuredErrors] = ()
    precision: Sequence[MeasuredPrecision] = ()
    localisation: Sequence[MeasuredLocalisation] = ()

    def markdown(self) -> str:
        """Return the card."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        yield f"# {_plain(self.title)}"
        yield ""
        yield from _listed(self.facts)
        yield from ("", "## Data", "")
        yield from _listed(self.data)
        yield from ("", "## Training", "")
        yield from _listed(self.training)
        heading, lines, use = {
            "classification": (_ERRORS, _error_lines(self.errors), _USE),
            "detection": ("## Average precision", _precision_lines(self.precision), _DETECTORS_USE),
            "localisation": ("## Localisation error", _localisation_lines(self.localisation), _LOCALISERS_USE),
        }[self.task]
        yield from ("", heading, "")
        yield from lines
        yield from ("", "## Differences from the paper", "")
        yield from (f"- {_plain(text)}" for text in self.deviations)
        yield from ("", "## Intended use", "")
        yield from use


def with_errors(card: str, errors: Sequence[MeasuredErrors]) -> str:
    """Return a card with its section of errors written anew."""
    before, found, after = card.partition(f"\n{_ERRORS}\n")
    if not found:
        return card
    rest = after[after.index("\n## ") :] if "\n## " in after else ""
    return before + found + "\n" + "\n".join(_error_lines(errors)) + "\n" + rest


def _error_lines(errors: Sequence[MeasuredErrors]) -> Iterator[str]:
    if not errors:
        yield "Not tested under any protocol yet."
        return
    yield "| protocol | images | top-1 error % | 95 % interval | top-5 error % | 95 % interval |"
    yield "|---|---:|---:|---:|---:|---:|"
    for found in errors:
        images = f"{found.images:,} {found.split}" + ("" if found.complete else f" of {found.of:,}")
        (low1, high1), (low5, high5) = found.top1_interval, found.top5_interval
        yield (
            f"| {_plain(found.protocol)} | {_plain(images)} | {found.top1:.2f} | {low1:.2f} to {high1:.2f} "
            f"| {found.top5:.2f} | {low5:.2f} to {high5:.2f} |"
        )
    yield ""
    yield "Intervals: Wilson's, over the images; they say nothing of other training seeds."


def _precision_lines(precision: Sequence[MeasuredPrecision]) -> Iterator[str]:
    if not precision:
        yield "Not tested yet."
        return
    yield "| of | images | AP % | 95 % interval | AP50 % | 95 % interval |"
    yield "|---|---:|---:|---:|---:|---:|"
    for found in precision:
        (low, high), (low50, high50) = found.ap_interval, found.ap50_interval
        yield (
            f"| {_plain(found.kind)} | {found.images:,} {_plain(found.split)} "
            f"| {found.ap:.2f} | {low:.2f} to {high:.2f} | {found.ap50:.2f} | {low50:.2f} to {high50:.2f} |"
        )
    yield ""
    yield "COCO's average precision. Intervals: bootstrap over the images; they say nothing of other training seeds."


def _localisation_lines(localisation: Sequence[MeasuredLocalisation]) -> Iterator[str]:
    if not localisation:
        yield "Not tested yet."
        return
    yield "| protocol | classes | images | localisation error % | 95 % interval |"
    yield "|---|---|---:|---:|---:|"
    for found in localisation:
        low, high = found.interval
        yield (
            f"| {_plain(found.protocol)} | {_plain(found.classes)} | {found.images:,} {_plain(found.split)} "
            f"| {found.error:.2f} | {low:.2f} to {high:.2f} |"
        )
    yield ""
    yield (
        "ILSVRC's: an image is right if one of at most five boxes, each of another class, has its class and an IoU of "
        "at least 0.5 with an object of it. Intervals: Wilson's, over the images; they say nothing of other training "
        "seeds."
    )


_LOCALISERS_USE = (
    "Research on localisation with this training method: it says where in an image a class is that is named to it,",
    "on images like those it was trained on. It always gives a box, also for a class that the image does not show,",
    "and its scores are not calibrated. It was not tested for fairness between groups of people, nor against images",
    "that were made to mislead it; don't let it decide about people or their safety.",
)

_DETECTORS_USE = (
    "Research on object detection with this training method: it finds objects of its dataset's classes, on images like",
    "those it was trained on. An object of another class it leaves out, or takes for one that it knows. Its scores are",
    "not calibrated. It was not tested for fairness between groups of people, nor against images that were made to",
    "mislead it; don't let it decide about people or their safety.",
)

_USE = (
    "Research on image classification and on this training method: it tells the classes of its dataset apart, on",
    "images like those it was trained on. It always names some class, also for images that show none of them, and its",
    "probabilities are not calibrated. It was not tested for fairness between groups of people, nor against images",
    "that were made to mislead it; don't let it decide about people or their safety.",
)


def _listed(values: Mapping[str, str]) -> Iterator[str]:
    for name, value in values.items():
        yield f"- **{_plain(name)}:** {_plain(value)}"


def _plain(text: str) -> str:
    """Return text that markdown shows as it is and that starts no HTML; names of classes and datasets are not ours."""
    one_line = " ".join(text.split())
    for character in "\\`*_[]<>|#":
        one_line = one_line.replace(character, f"\\{character}" if character not in "<>" else _ENTITIES[character])
    return one_line


_ENTITIES = {"<": "&lt;", ">": "&gt;"}
