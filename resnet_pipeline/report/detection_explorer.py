"""The explorer of detectors: one self-contained HTML page on what a detector misses, mistakes and invents."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_pipeline.report.detections import Picture, drawn
from resnet_pipeline.report.model_card import MeasuredPrecision
from resnet_pipeline.report.templates import rendered, write_text


@dataclass(frozen=True, kw_only=True)
class WrongImage:
    """An image with mistakes: its picture as a data URI, and the classes of what was missed, confused and invented."""

    key: str
    uri: str
    missed: Sequence[str]
    confused: Sequence[tuple[str, str]]
    invented: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """``count`` objects of one class taken for another, of ``of`` of that class; "nothing" stands for no object."""

    there: str
    found: str
    count: int
    of: int


@dataclass(frozen=True, kw_only=True)
class DetectedClass:
    """A class: its objects, its average precision in percent, and how many were found, confused, missed, invented."""

    name: str
    objects: int
    ap: float
    right: int
    confused: int
    missed: int
    invented: int


@dataclass(frozen=True, kw_only=True)
class DetectionExplorer:
    """A whole page: ``wrong`` images have mistakes, the worst of which are ``images``."""

    title: str
    subtitle: str
    boxes: MeasuredPrecision
    least_score: float
    wrong: int
    images: Sequence[WrongImage]
    confusions: Sequence[Confusion]
    classes: Sequence[DetectedClass]


def write_detection_explorer(data: DetectionExplorer, path: Path) -> Path:
    """Write the page, atomically, and return its path; UserError if it can't be written."""
    page = rendered("detection_explorer.html.j2", trimmed=True, data=data)
    return write_text(path, page)


def picture_uri(picture: Picture) -> str:
    """Return a drawn picture as a data URI of a JPEG."""
    buffer = io.BytesIO()
    drawn(picture).save(buffer, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
