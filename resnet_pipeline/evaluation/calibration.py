"""How far a network's confidence can be believed: reliability bins and the expected calibration error.

Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resnet_pipeline.evaluation.confusion import Labels, check_labelled, top_classes

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Equal bins of confidence: ``edges`` float64 [B + 1], ``images`` int64 [B], means per bin float64 [B].

    ``confidence`` is the mean probability of the best class, ``accuracy`` the share of right answers, both in 0..1 and
    NaN if a bin is empty. ``error`` is the expected calibration error in percent: the mean distance of the two,
    weighted by the bins' images.
    """

    edges: Float64
    images: npt.NDArray[np.int64]
    confidence: Float64
    accuracy: Float64
    error: float


def calibrate(probabilities: npt.NDArray[np.floating], labels: Labels, *, bins: int = 15) -> Calibration:
    """Bin the samples of scores [N, C] by confidence; a bin includes its upper edge, the first one 0 as well.

    Raises UserError if a label is not known.

    >>> round(calibrate(np.array([[0.9, 0.1], [0.6, 0.4]]), np.array([0, 1])).error, 2)
    35.0
    """
    check_labelled(labels)
    best = top_classes(probabilities, 1)[:, 0]
    confidence = probabilities[np.arange(len(best)), best].astype(np.float64)
    right = best == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    sums = np.bincount(place, weights=confidence, minlength=bins)
    hits = np.bincount(place, weights=right, minlength=bins)
    with np.errstate(invalid="ignore"):
        means, accuracy = sums / images, hits / images
    error = 100 * float(np.abs(sums - hits).sum()) / max(len(best), 1)
    return Calibration(edges=edges, images=images, confidence=means, accuracy=accuracy, error=error)
