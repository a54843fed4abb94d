"""The paper's testing protocols as data: which images a network sees of each sample, and what is averaged.

``center``: one centre crop. ``10-crop``: corners and centre, each mirrored (Krizhevsky et al., 2012; Tables 2 and 3).
``multi-scale``: fully convolutional over the whole image at several shorter sides, mirrored too (Table 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from resnet_pipeline.config import ViewConfig
from resnet_pipeline.errors import UserError, did_you_mean

PROTOCOLS = ("center", "10-crop", "multi-scale")
AVERAGES = ("softmax", "logits")
ViewKind = Literal["center", "10-crop", "whole"]
Average = Literal["softmax", "logits"]


@dataclass(frozen=True, kw_only=True)
class TestSpec:
    """How networks are tested: on which images, under which protocol, by whom.

    ``split`` None is the dataset's val, or test if there is no val; ``images`` limits it to that many evenly spaced
    ones. ``scales`` are the shorter sides instead of each network's own. ``average`` says what is averaged over the
    views: softmax or logits. ``workers`` is the number of workers on Ray; without it all of the cluster is used that
    RAY_ADDRESS names, and without a cluster all GPUs of this machine, or this process. ``half`` keeps the scores as
    float16. ``allow_partial`` lets runs of fewer steps than their recipe's into an ensemble by name. ``price`` is what
    an hour of the hardware costs; None is the environment's.
    """

    __test__: ClassVar[bool] = False  # no test of pytest's

    dataset: str
    protocol: str
    split: str | None = None
    images: int | None = None
    scales: Sequence[int] | None = None
    average: str = "softmax"
    workers: int | None = None
    half: bool = False
    allow_partial: bool = False
    price: float | None = None

    def __post_init__(self) -> None:
        """Raise UserError for a number of images that can't be tested on."""
        if self.images is not None and self.images < 1:
            raise UserError(f"images must be at least 1, not {self.images}")


_LARGEST_SIDE = 4096  # of a whole image at this side the first layer's output alone is some GB


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """``kind`` of views at each of the shorter sides ``sides``; ``mirror`` adds the mirror image of every view.

    ``average`` says what is averaged over views: class probabilities (the authors) or logits, whose softmax is taken
    at the end.
    """

    name: str
    kind: ViewKind
    sides: tuple[int, ...]
    crop: int
    mirror: bool
    average: Average = "softmax"

    @property
    def id(self) -> str:
        """A name that tells this protocol from every other: it is a part of a score file's path."""
        sides = "-".join(map(str, self.sides))
        logits = "-logits" if self.average == "logits" else ""
        return f"{self.name}-{self.crop}-of-{sides}{'-mirrored' if self.mirror else ''}{logits}"


def protocol_of(
    name: str, views: ViewConfig, *, scales: Sequence[int] | None = None, average: str = "softmax"
) -> Protocol:
    """Return the protocol of this name for a network's view sizes.

    ``scales`` are the shorter sides to test at instead of the network's own; scores are averaged over them. Raises
    UserError for an unknown name or average, and for a scale that is less than the crop, too large, or named twice.

    >>> from resnet_pipeline.config import ViewConfig
    >>> protocol_of("center", ViewConfig(crop=224, resize=256)).id
    'center-224-of-256'
    """
    if average not in AVERAGES:
        raise UserError(f"unknown average {average!r}{did_you_mean(average, AVERAGES)}; it is softmax or logits")
    if name not in PROTOCOLS:
        raise UserError(
            f"unknown protocol {name!r}{did_you_mean(name, PROTOCOLS)}; the protocols are {', '.join(PROTOCOLS)}"
        )
    sides = tuple(sorted(scales)) if scales else (views.scales if name == "multi-scale" else (views.resize,))
    for side in sides:
        if side < views.crop:
            raise UserError(f"scale {side} is less than the network's crops of {views.crop} pixels")
        if side > _LARGEST_SIDE:
            raise UserError(f"scale {side} is more than {_LARGEST_SIDE} pixels; take a smaller one")
        if sides.count(side) > 1:
            raise UserError(f"scale {side} is named twice")
    return Protocol(
        name=name,
        kind="whole" if name == "multi-scale" else name,  # type: ignore[arg-type]
        sides=sides,
        crop=views.crop,
        mirror=views.flip and name != "center",
        average=average,  # type: ignore[arg-type]
    )
