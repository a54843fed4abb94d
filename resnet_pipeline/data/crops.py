"""Which window is cut out of each image, before anything is decoded: pure functions of (seed, position, sizes)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resnet_pipeline.config import AugmentConfig
from resnet_pipeline.data.order import Int64, uniform

# Numbers of the draws; a new kind of draw takes a new number, so that the others stay as they are.
_FLIP, _SCALE, _Y, _X = 0, 1, 2, 3
_COLOR = 10  # and five more: two for each of three normal draws
_TRY = 20  # and four for each try of random-resized-crop
_TRIES = 10


@dataclass(frozen=True)
class Plan:
    """N crops: ``window`` int64 [N, 4] (y, x, height, width) in pixels of the image, to be resized to ``size``².

    ``index`` int64 [N] are sample numbers, ``flip`` bool [N] mirrors afterwards, ``color`` float32 [N, 3] is the RGB
    offset in 0..255 units. A window lies inside its image, except for pad-crop's.
    """

    index: Int64
    window: Int64
    size: int
    flip: npt.NDArray[np.bool_]
    color: npt.NDArray[np.float32]


def plan_crops(
    config: AugmentConfig,
    *,
    seed: int,
    positions: Int64,
    index: Int64,
    width: npt.NDArray[np.int32],
    height: npt.NDArray[np.int32],
    color_basis: npt.NDArray[np.float64],
) -> Plan:
    """Draw the crops of the samples ``index`` [N] at ``positions`` [N], whose images have these sizes [N].

    ``color_basis`` [3, 3] is the manifest's: principal components times their eigenvalues, in 0..255 units.
    """
    h, w = height.astype(np.int64), width.astype(np.int64)
    if config.kind == "scale-crop":
        window = _scale_crop(config, seed, positions, h, w)
    elif config.kind == "pad-crop":
        window = _pad_crop(config, seed, positions, h, w)
    else:
        window = _random_resized_crop(config, seed, positions, h, w)
    flip = flips(config, seed, positions)
    return Plan(index, window, config.crop, flip, color_offsets(config, seed, positions, color_basis))


def flips(config: AugmentConfig, seed: int, positions: Int64) -> npt.NDArray[np.bool_]:
    """Return whether the image at each position is mirrored, bool [N]."""
    if not config.flip:
        return np.zeros(len(positions), dtype=np.bool_)
    return uniform(seed, positions, _FLIP) < 0.5


def shorter_sides(config: AugmentConfig, seed: int, positions: Int64) -> Int64:
    """Return the shorter side of the image at each position, int64 [N]: uniform in whole pixels (section 3.4)."""
    low, high = config.shorter_side
    return (low + np.floor(uniform(seed, positions, _SCALE) * (high - low + 1))).astype(np.int64)


def _scale_crop(config: AugmentConfig, seed: int, positions: Int64, h: Int64, w: Int64) -> Int64:
    """Shorter side uniform in whole pixels, then a random crop of it (section 3.4), as a window of the original."""
    shorter = shorter_sides(config, seed, positions)
    return _window_of_resized(config.crop, shorter, uniform(seed, positions, _Y), uniform(seed, positions, _X), h, w)


def _window_of_resized(
    crop: int,
    shorter: Int64,
    at_y: npt.NDArray[np.float64],
    at_x: npt.NDArray[np.float64],
    h: Int64,
    w: Int64,
) -> Int64:
    """Return the window of the original that becomes a crop of the image resized to a shorter side.

    Two numbers in [0, 1) choose the crop's place, a whole pixel of the resized image. The window is rounded to whole
    pixels of the original, at least one, and lies inside.
    """
    factor = np.minimum(h, w) / shorter  # original pixels per resized pixel
    y = np.floor(at_y * (np.floor(h / factor + 1e-9) - crop + 1)) * factor
    x = np.floor(at_x * (np.floor(w / factor + 1e-9) - crop + 1)) * factor
    side = np.rint(crop * factor)
    return _inside(np.rint(y), np.rint(x), side, side, h, w)


def _pad_crop(config: AugmentConfig, seed: int, positions: Int64, h: Int64, w: Int64) -> Int64:
    """Cut a random crop of the image with ``pad`` more pixels on each side (section 4.2); it may lie outside.

    An image whose shorter side is not the crop's is treated as if resized to it first.
    """
    factor = np.minimum(h, w) / config.crop
    places_y = np.floor(h / factor + 1e-9) + 2 * config.pad - config.crop + 1
    places_x = np.floor(w / factor + 1e-9) + 2 * config.pad - config.crop + 1
    y = (np.floor(uniform(seed, positions, _Y) * places_y) - config.pad) * factor
    x = (np.floor(uniform(seed, positions, _X) * places_x) - config.pad) * factor
    side = np.maximum(np.rint(config.crop * factor), 1)
    return np.stack([np.rint(y), np.rint(x), side, side], axis=1).astype(np.int64)


def _random_resized_crop(config: AugmentConfig, seed: int, positions: Int64, h: Int64, w: Int64) -> Int64:
    """Torchvision's RandomResizedCrop (Szegedy et al., 2014): ten tries, then the largest centred crop."""
    low, high = math.log(config.aspect[0]), math.log(config.aspect[1])
    # the fallback: as much of the centre as the allowed proportions leave
    ratio = w / h
    out_w = np.where(ratio < config.aspect[0], w, np.where(ratio > config.aspect[1], np.rint(h * config.aspect[1]), w))
    out_h = np.where(ratio < config.aspect[0], np.rint(w / config.aspect[0]), h)
    y, x = (h - out_h) // 2, (w - out_w) // 2
    open_ = np.ones(len(positions), dtype=np.bool_)
    for attempt in range(_TRIES):
        draws = [uniform(seed, positions, _TRY + 4 * attempt + i) for i in range(4)]
        area = h * w * (config.area[0] + draws[0] * (config.area[1] - config.area[0]))
        aspect = np.exp(low + draws[1] * (high - low))
        try_w, try_h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        good = open_ & (try_w > 0) & (try_w <= w) & (try_h > 0) & (try_h <= h)
        y = np.where(good, np.floor(draws[2] * (h - try_h + 1)), y)
        x = np.where(good, np.floor(draws[3] * (w - try_w + 1)), x)
        out_h, out_w = np.where(good, try_h, out_h), np.where(good, try_w, out_w)
        open_ &= ~good
    return _inside(y, x, out_h, out_w, h, w)


def _inside(y: npt.NDArray, x: npt.NDArray, height: npt.NDArray, width: npt.NDArray, h: Int64, w: Int64) -> Int64:  # type: ignore[type-arg]
    """Return windows int64 [N, 4] of at least one pixel, moved and cut to lie inside the image."""
    height, width = np.clip(height, 1, h), np.clip(width, 1, w)
    return np.stack([np.clip(y, 0, h - height), np.clip(x, 0, w - width), height, width], axis=1).astype(np.int64)


def color_offsets(
    config: AugmentConfig, seed: int, positions: Int64, basis: npt.NDArray[np.float64]
) -> npt.NDArray[np.float32]:
    """Return AlexNet's PCA offsets (Krizhevsky et al., 2012, section 4.1): basis · α, α normal with std ``color``.

    They are RGB in 0..255 units, float32 [N, 3], of the crops at ``positions`` int64 [N].
    """
    if config.color == 0:
        return np.zeros((len(positions), 3), dtype=np.float32)
    alpha = np.empty((len(positions), 3))
    for i in range(3):  # Box and Muller, 1958; 1 − u is never zero
        radius = np.sqrt(-2 * np.log(1 - uniform(seed, positions, _COLOR + 2 * i)))
        alpha[:, i] = radius * np.cos(2 * np.pi * uniform(seed, positions, _COLOR + 2 * i + 1))
    return (config.color * alpha @ basis.T).astype(np.float32)


@dataclass(frozen=True)
class ViewPlan:
    """N images to be resized to ``resized`` int64 [N, 2] (height, width) and cut at ``corners`` int64 [N, V, 2].

    Each of the V crops has ``crop`` (height, width). Sizes and places follow torchvision's Resize, CenterCrop and
    FiveCrop.
    """

    index: Int64
    resized: Int64
    corners: Int64
    crop: tuple[int, int]


@dataclass(frozen=True)
class WholePlan:
    """N images to be decoded once and resized to S sizes each, ``resized`` int64 [N, S, 2] (height, width)."""

    index: Int64
    resized: Int64


def resized_sizes(width: npt.NDArray[np.int32], height: npt.NDArray[np.int32], shorter: int) -> Int64:
    """Return (height, width) int64 [N, 2] of images resized to a shorter side; the longer one is rounded down.

    >>> resized_sizes(np.array([640], np.int32), np.array([480], np.int32), 256).tolist()
    [[256, 341]]
    """
    h, w = height.astype(np.int64), width.astype(np.int64)
    least = np.minimum(h, w)
    return np.stack([h * shorter // least, w * shorter // least], axis=1)


def largest_resized(height: int, width: int, sides: Sequence[int]) -> int:
    """Return the most pixels that an image of this size has while it is tested whole, decoded or made larger.

    A thin image becomes very long.

    >>> largest_resized(480, 640, (224, 960))
    1228800
    """
    (size,) = resized_sizes(np.array([width]), np.array([height]), max(sides))
    return max(height * width, int(size[0]) * int(size[1]))


def plan_views(kind: str, *, index: Int64, resized: Int64, crop: int) -> ViewPlan:
    """Plan ``center`` (V = 1) or ``10-crop`` (V = 5: four corners and the centre, to be mirrored by the caller)."""
    spare = resized - crop
    centre = np.rint(spare / 2).astype(np.int64)  # as torchvision: halves round to even
    if kind == "center":
        return ViewPlan(index, resized, centre[:, None, :], (crop, crop))
    zero = np.zeros_like(spare[:, 0])
    corners = [
        np.stack([zero, zero], axis=1),
        np.stack([zero, spare[:, 1]], axis=1),
        np.stack([spare[:, 0], zero], axis=1),
        spare,
        centre,
    ]
    return ViewPlan(index, resized, np.stack(corners, axis=1), (crop, crop))
