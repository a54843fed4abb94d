"""The paper's testing protocols as data: which images a network sees of each sample.

``center``: one centre crop. ``10-crop``: corners and centre, each mirrored (Krizhevsky et al., 2012; Tables 2 and 3).
``multi-scale``: fully convolutional over the whole image at several shorter sides, mirrored too (Table 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_pipeline.config import ViewConfig
from resnet_pipeline.errors import UserError, did_you_mean

PROTOCOLS = ("center", "10-crop", "multi-scale")
ViewKind = Literal["center", "10-crop", "whole"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """``kind`` of views at each of the shorter sides ``sides``; ``mirror`` adds the mirror image of every view."""

    name: str
    kind: ViewKind
    sides: tuple[int, ...]
    crop: int
    mirror: bool

    @property
    def id(self) -> str:
        """A name that tells this protocol from every other: it is a part of a score file's path."""
        sides = "-".join(map(str, self.sides))
        return f"{self.name}-{self.crop}-of-{sides}{'-mirrored' if self.mirror else ''}"


def protocol_of(name: str, views: ViewConfig) -> Protocol:
    """Return the protocol of this name for a network's view sizes; UserError for an unknown name."""
    if name == "center":
        return Protocol(name=name, kind="center", sides=(views.resize,), crop=views.crop, mirror=False)
    if name == "10-crop":
        return Protocol(name=name, kind="10-crop", sides=(views.resize,), crop=views.crop, mirror=views.flip)
    if name == "multi-scale":
        return Protocol(name=name, kind="whole", sides=views.scales, crop=views.crop, mirror=views.flip)
    raise UserError(
        f"unknown protocol {name!r}{did_you_mean(name, PROTOCOLS)}; the protocols are {', '.join(PROTOCOLS)}"
    )
