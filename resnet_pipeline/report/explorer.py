"""The error explorer: one self-contained HTML page on a network's mistakes, with thumbnails; nothing is fetched."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from resnet_pipeline.data.image_files import open_image
from resnet_pipeline.evaluation.calibration import Calibration
from resnet_pipeline.report.evaluation_figures import reliability_figure
from resnet_pipeline.report.figures import inline
from resnet_pipeline.report.model_card import MeasuredErrors
from resnet_pipeline.report.templates import rendered, write_text

THUMBNAIL = 144
"""A thumbnail's longest side in pixels; smaller images stay as they are."""

_SMALL = 64
"""An image of so many pixels in width or fewer is shown in whole pixels, not blurred."""


@dataclass(frozen=True)
class ClassName:
    """A class as the dataset names it, and in words."""

    name: str
    words: str

    @property
    def short(self) -> str:
        """The first of its words' synonyms."""
        return self.words.split(",")[0].strip() or self.name

    @property
    def full(self) -> str:
        """Its words, and its name if that is another."""
        return self.words if self.words == self.name else f"{self.words} ({self.name})"


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A class with the probability that the network gives it; ``right`` if it is the label."""

    name: ClassName
    probability: float
    right: bool


@dataclass(frozen=True)
class Thumbnail:
    """An image made small, as a data URI of a JPEG; ``small`` if it is shown in whole pixels, not blurred."""

    uri: str
    small: bool


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """An image that was taken for another class: its key, a thumbnail, its label, the best guesses."""

    key: str
    thumbnail: Thumbnail
    label: ClassName
    label_probability: float
    guesses: list[Guess]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """``count`` images of one class taken for another, of ``images`` of that class; some of them as thumbnails."""

    label: ClassName
    predicted: ClassName
    count: int
    images: int
    thumbnails: list[tuple[str, Thumbnail]]


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class's images, its errors in percent, and the class that it is most often taken for, with how often."""

    name: ClassName
    images: int
    top1: float
    top5: float
    taken_for: ClassName | None
    times: int


@dataclass(frozen=True, kw_only=True)
class ExplorerData:
    """A whole page."""

    title: str
    models: list[str]
    dataset_name: str
    dataset_fingerprint: str
    created: str
    measured: MeasuredErrors
    calibration: Calibration
    mistakes: list[Mistake]
    wrong: int
    pairs: list[Pair]
    classes: list[ClassRow]


def write_explorer(data: ExplorerData, path: Path) -> Path:
    """Write the page, atomically, and return its path; UserError if it can't be written."""
    page = rendered(
        "explorer.html.j2",
        trimmed=True,
        data=data,
        figure=Markup(
            inline(reliability_figure({"this model": data.calibration}))
        ),  # matplotlib escapes the text that it draws
    )
    return write_text(path, page)


def thumbnail(encoded: bytes) -> Thumbnail:
    """Return an encoded image made small."""
    with open_image(encoded) as opened:
        opened.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))  # a JPEG is decoded at a fraction of its size
        image = opened.convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75, optimize=True)
    uri = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Thumbnail(uri, small=image.width <= _SMALL)
